"""`higgsc explain`: the long text behind a diagnostic code."""

from __future__ import annotations

import click

from higgsc.compiler.codes import CODES
from higgsc.compiler.diagnostics import did_you_mean


@click.command("explain")
@click.argument("code")
def command(code: str) -> None:
    """Explain a diagnostic CODE, such as HC501."""
    entry = CODES.get(code.upper())
    if entry is None:
        raise click.UsageError(f"no code `{code}`; {did_you_mean(code.upper(), CODES) or 'codes look like HC501'}")
    click.echo(f"{entry.severity}[{code.upper()}]: {entry.title}\n\n{entry.explanation}")
