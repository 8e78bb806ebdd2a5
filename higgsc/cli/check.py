"""`higgsc check`: compile, report, write nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report, headline
from higgsc.contract.outcome import ExitCode


@click.command("check")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(specs: tuple[Path, ...]) -> None:
    """Compile SPECS and report what is wrong; write nothing."""
    failed = False
    for spec in specs:
        compilation = compile_and_report(spec)
        if compilation.plan is None or compilation.ir is None:
            failed = True
        else:
            click.echo(headline(compilation.plan, compilation.ir))
    if failed:
        sys.exit(ExitCode.DIAGNOSTICS)
