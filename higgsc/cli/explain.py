"""`higgsc explain`: the long text behind a diagnostic code, or where a value of a spec came from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report, composition_options
from higgsc.compiler.codes import CODES
from higgsc.compiler.composition.provenance import explain, known_paths
from higgsc.compiler.diagnostics import did_you_mean
from higgsc.contract.outcome import ExitCode


@click.command("explain")
@click.argument("subject")
@click.argument("value", required=False)
@composition_options
def command(subject: str, value: str | None, site: str | None, overrides: tuple[str, ...]) -> None:
    """Explain a diagnostic code (`explain HC501`), or a value of a spec (`explain specs/arabic.yaml lora.rank`)."""
    if value is None:
        _explain_code(subject)
        return
    compilation = compile_and_report(Path(subject), site=site, overrides=overrides)
    if not compilation.compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    for made in compilation.compiled:
        lines = explain(made.ir, value)
        if lines is None:
            raise click.UsageError(
                f"no value `{value}`; {did_you_mean(value, known_paths(made.ir)) or 'see resolved.yaml'}"
            )
        if len(compilation.compiled) > 1:
            click.echo(f"{made.plan.name}:")
        click.echo("\n".join(lines))


def _explain_code(code: str) -> None:
    if code.endswith((".yaml", ".yml")):
        raise click.UsageError(f"name a value as well: `higgsc explain {code} lora.rank`")
    entry = CODES.get(code.upper())
    if entry is None:
        known = did_you_mean(code.upper(), CODES) if re.match("[hH][cC]", code) else None
        raise click.UsageError(
            f"no code `{code}`; {known or 'codes look like HC501; for a value, name spec and value'}"
        )
    click.echo(f"{entry.severity}[{code.upper()}]: {entry.title}\n\n{entry.explanation}")
