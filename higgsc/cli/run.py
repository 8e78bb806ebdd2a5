"""`higgsc run`: build, then carry the plan out here."""

from __future__ import annotations

from pathlib import Path

import click

from higgsc.cli.compiling import composition_options, relative
from higgsc.cli.launching import launches


@click.command("run")
@click.argument("spec", metavar="SPEC|BUILD", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="STEP", help="Repeat this step and those after it, finished or not.")
@composition_options
def command(spec: Path, first: str | None, site: str | None, overrides: tuple[str, ...]) -> None:
    """Build SPEC and carry its plan out on this machine, step by step.

    Steps that finished before and whose job file and inputs are unchanged are skipped."""
    from higgsc.launch.local import run_plan

    for launch in launches(spec, site=site, overrides=overrides):
        target = launch.target
        click.echo(launch.headline)
        click.echo(f"built {relative(target.folder)}, running in {relative(target.run)}")
        for line in run_plan(target.folder, first=first):
            click.echo(line)
