"""`higgsc run`: build, then carry the plan out here."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report, composition_options, headline, refuse_without_data, relative
from higgsc.contract.outcome import ExitCode
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.write import write


@click.command("run")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="STEP", help="Repeat this step and those after it, finished or not.")
@composition_options
def command(spec: Path, first: str | None, site: str | None, overrides: tuple[str, ...]) -> None:
    """Build SPEC and carry its plan out on this machine, step by step.

    Steps that finished before and whose job file and inputs are unchanged are skipped."""
    from higgsc.launch.local import run_plan

    compilation = compile_and_report(spec, site=site, overrides=overrides)
    if not compilation.compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    refuse_without_data(compilation)
    for build in builds_of(compilation):
        folder = compilation.root / build.plan.build
        write(folder, emit_all(build))
        click.echo(headline(build.plan, build.ir))
        click.echo(f"built {relative(folder)}, running in {relative(compilation.root / build.plan.run)}")
        for line in run_plan(folder, first=first):
            click.echo(line)
