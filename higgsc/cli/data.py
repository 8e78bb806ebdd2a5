"""`higgsc data`: speech data before it is prepared."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from higgsc.cli.compiling import compile_and_report, refuse_without_data, relative
from higgsc.contract.jobs import DataLimits, PrepareJob
from higgsc.contract.outcome import ExitCode
from higgsc.spec.data import Format

if TYPE_CHECKING:
    from higgsc.data.validate import Report, Request


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
    """Convert a data file to one sample a line.

    IN is of any known format. Samples that cannot be read go to OUT.rejected.jsonl, each with its cause and line.
    Audio stays where it is."""
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


@command.command("validate")
@click.argument("what", metavar="SPEC|FILE", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(get_args(Format)), default="auto", help="Of a FILE.")
@click.option("--pairing", type=click.Choice(["same-speaker"]), help="Of a FILE; a SPEC has its own.")
@click.option("--speaker", help="Of the rows of a FILE that name none.")
@click.option(
    "--root", "roots", multiple=True, type=click.Path(path_type=Path), help="Folder inside which audio may lie too."
)
@click.option("--max-seconds", type=click.FloatRange(0, 600, min_open=True), default=30.0, help="Limit for a FILE.")
@click.option("--fast", "depth", flag_value="headers", help="Read the headers of audio files, decode nothing.")
@click.option("--rows", "depth", flag_value="rows", help="Look at the rows alone, at no audio.")
@click.option("--workers", type=click.IntRange(1), help="Processes; as many as there are cores if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as a page with histograms and players.")
def validate_command(
    what: Path,
    form: str,
    pairing: str | None,
    speaker: str | None,
    roots: tuple[Path, ...],
    max_seconds: float,
    depth: str | None,
    workers: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Check data and its audio before anything is encoded.

    The data are those of a SPEC (.yaml), or a data FILE. Exits with 1 if more samples are bad than
    `data.limits.max_bad_fraction` allows."""
    from higgsc.data import report as reports
    from higgsc.data.report_html import write_page
    from higgsc.data.samples import SourceFile
    from higgsc.data.validate import Request, validate

    more = tuple(root.resolve() for root in roots)
    common: dict[str, Any] = {"depth": depth or "full", "workers": workers or os.cpu_count() or 1}
    if what.suffix in (".yaml", ".yml"):
        job, root = _prepare_job(what)
        request = Request(
            sources=tuple(
                SourceFile(
                    path=root / source.path,
                    format=source.format,
                    pairing=source.pairing,
                    speaker=source.speaker,
                    seed=job.seed,
                )
                for source in job.sources
            ),
            root=root,
            roots=(*(root / folder for folder in job.roots), *more),
            limits=job.limits,
            text=job.text,
            validation_fraction=job.validation_fraction,
            validation_by=job.validation_by,
            seed=job.seed,
            **common,
        )
    else:
        request = Request(
            sources=(SourceFile(path=what, format=form, pairing=pairing, speaker=speaker),),
            root=what.resolve().parent,
            roots=more,
            limits=DataLimits(min_seconds=0.5, max_seconds=max_seconds, max_bad_fraction=0.01),
            **common,
        )
    report = _with_progress(request) if sys.stderr.isatty() else validate(request)
    if as_json:
        click.echo(json.dumps(reports.as_json(report), ensure_ascii=False, indent=2))
    else:
        click.echo(reports.render_text(report))
    if html is not None:
        write_page(report, html, title=what.name)
        click.echo(f"report: {relative(html)}", err=True)
    if not report.passed:
        sys.exit(ExitCode.DIAGNOSTICS)


def _with_progress(request: Request) -> Report:
    from higgsc.data.validate import validate

    with click.progressbar(length=1, label="recordings", file=sys.stderr, show_eta=True, show_pos=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        return validate(request, progress)


def _prepare_job(spec: Path) -> tuple[PrepareJob, Path]:
    """The prepare job of a spec, and its project root."""
    compilation = compile_and_report(spec)
    if not compilation.compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    refuse_without_data(compilation)
    job = compilation.compiled[0].plan.step("prepare").job
    assert isinstance(job, PrepareJob)
    return job, compilation.root
