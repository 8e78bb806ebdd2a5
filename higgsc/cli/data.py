"""`higgsc data`: speech data before it is prepared."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import click

from higgsc.cli.compiling import relative
from higgsc.spec.data import Format


@click.group("data")
def command() -> None:
    """Convert and validate speech data."""


@command.command("convert")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), help="File to write.")
@click.option("--format", "form", type=click.Choice(get_args(Format)), default="auto", show_default=True)
@click.option("--to", type=click.Choice(["canonical", "chatml"]), default="canonical", show_default=True)
@click.option("--pairing", type=click.Choice(["same-speaker"]), help="Give single recordings a reference.")
@click.option("--speaker", help="Speaker of the rows that name none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the pairing.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def convert_command(
    source: Path,
    output: Path,
    form: str,
    to: Literal["canonical", "chatml"],
    pairing: str | None,
    speaker: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Convert the data file IN, of any known format, to one sample a line.

    Samples that cannot be read go to OUT.rejected.jsonl, each with its cause and line. Audio stays where it is."""
    from higgsc.data.convert import convert
    from higgsc.data.formats.reading import detect
    from higgsc.data.samples import SourceFile

    evidence = None
    if form == "auto":
        found, evidence = detect(source)
        form = found.name
    made = convert(SourceFile(path=source, format=form, pairing=pairing, speaker=speaker, seed=seed), output, to=to)
    if as_json:
        shown = asdict(made) | {"format": form, "evidence": evidence, "rejects": made.rejects and str(made.rejects)}
        click.echo(json.dumps(shown, ensure_ascii=False, indent=2))
        return
    click.echo(f"{relative(source)}: {form}" + (f" ({evidence})" if evidence else ""), err=True)
    click.echo(f"{relative(output)}: {made.written:,} samples")
    if made.prompts:
        click.echo(f"  {made.prompts:,} without target audio: to generate from, not to learn from")
    if made.singles:
        click.echo(f"  {made.singles:,} without a reference: `--pairing same-speaker` finds one")
    if made.rejects is not None:
        click.echo(f"  {made.rejected:,} rejected, listed in {relative(made.rejects)}", file=sys.stderr)
        for cause, count in made.causes[:5]:
            click.echo(f"    {count:,} × {cause}", file=sys.stderr)
