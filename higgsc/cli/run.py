"""`higgsc run`: build, then carry the plan out here."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report, emitted, headline, relative
from higgsc.contract.outcome import ExitCode
from higgsc.emit.write import write


@click.command("run")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="STEP", help="Repeat this step and those after it, finished or not.")
def command(spec: Path, first: str | None) -> None:
    """Build SPEC and carry its plan out on this machine, step by step.

    Steps that finished before and whose job file and inputs are unchanged are skipped."""
    from higgsc.launch.local import run_plan

    compilation = compile_and_report(spec)
    if compilation.plan is None or compilation.ir is None:
        sys.exit(ExitCode.DIAGNOSTICS)
    folder = compilation.root / compilation.plan.build
    write(folder, emitted(compilation))
    click.echo(headline(compilation.plan, compilation.ir))
    click.echo(f"built {relative(folder)}, running in {relative(compilation.root / compilation.plan.run)}")
    for line in run_plan(folder, first=first):
        click.echo(line)
