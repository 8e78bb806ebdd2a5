"""`higgsc logs`: what the steps of a run print."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import click

from higgsc.cli.launching import asked_about
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import Target
from higgsc.launch.journal import read_journal
from higgsc.launch.scheduler import scheduler_named


@click.command("logs")
@click.argument("name", metavar="RUN|SPEC|BUILD", type=click.Path(path_type=Path))
@click.option("--follow", "-f", is_flag=True, help="Go on until the run is over.")
@click.option("--step", help="Only this step; all steps that have a job otherwise.")
@click.option("--lines", "-n", type=click.IntRange(min=1), help="Only the last lines of each step.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line: run, step, job, line.")
def command(name: Path, follow: bool, step: str | None, lines: int | None, as_json: bool) -> None:
    """Print the logs of a run's steps, one after the other."""
    if follow and lines is not None:
        raise click.UsageError("--lines does not go with --follow")
    targets = asked_about(name)
    if follow and len(targets) > 1:
        names = ", ".join(target.plan.name for target in targets)
        raise StepError(f"--follow takes one run; `{name}` stands for {names}", code=ExitCode.USAGE)
    for target in targets:
        _print(target, follow=follow, step=step, lines=lines, as_json=as_json)


def _print(target: Target, *, follow: bool, step: str | None, lines: int | None, as_json: bool) -> None:
    names = [one.name for one in target.plan.steps]
    if step is not None and step not in names:
        raise StepError(f"no step `{step}`; the steps are {', '.join(names)}", code=ExitCode.USAGE)
    journal = read_journal(target.run)
    if journal is None:
        raise StepError(f"{target.plan.name} was never started", code=ExitCode.MISSING_INPUT, path=target.run)
    scheduler = scheduler_named(journal.scheduler)
    wanted = [step] if step is not None else [name for name in names if journal.steps[name].state != "skipped"]
    jobs = {name: job for name in wanted if (job := journal.steps[name].job) is not None}
    if not jobs:
        raise StepError(
            f"{step or target.plan.name} has no job yet", code=ExitCode.MISSING_INPUT, help="`higgsc status` says more"
        )
    for name, job in jobs.items():
        if not as_json and len(jobs) > 1:
            click.echo(click.style(f"== {target.plan.name} {name} ({job})", bold=True))
        found: Iterable[str] = scheduler.log(target, name, job, follow=follow)
        for line in found if lines is None else deque(found, maxlen=lines):
            row = {"run": target.plan.name, "step": name, "job": job, "line": line}
            click.echo(json.dumps(row, ensure_ascii=False) if as_json else line)
