"""`higgsc status`: how far runs are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from higgsc.cli.launching import asked_about
from higgsc.cli.words import ago, clock, duration, rate, table
from higgsc.launch.built import Target
from higgsc.launch.journal import read_journal
from higgsc.launch.scheduler import scheduler_named
from higgsc.launch.status import Progress, RunStatus, StepStatus, status_of

STATUSES_SCHEMA = "higgsc.statuses/v1"
SECONDS_OF_SILENCE = 300.0
"""A running step that has not been heard of for longer is worth a word."""


@click.command("status")
@click.argument("name", metavar="[RUN|SPEC|BUILD]", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--retry-for", metavar="SECONDS", type=click.FloatRange(min=0), default=20.0,
    help="How long to try while the scheduler does not answer [20].",
)  # fmt: skip
def command(name: Path | None, as_json: bool, retry_for: float) -> None:
    """Show the steps of a run: what waits and why, how far the running one is, what is done.

    Of a sweep: a line for each point, with the step that it is at. Without an argument: all runs below runs/."""
    found = [_look(target, retry_for) for target in asked_about(name)]
    if as_json:
        document = {"schema": STATUSES_SCHEMA, "runs": [status.document() for status in found]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    if not found:
        click.echo("no runs below runs/; start one with `higgsc submit` or `higgsc run`")
    if name is not None and len(found) > 1:
        click.echo("\n".join(_overview(name.stem, found)))
        return
    click.echo("\n".join(line for status in found for line in _lines(status)))


def _look(target: Target, retry_for: float) -> RunStatus:
    journal = read_journal(target.run)
    return status_of(target, None if journal is None else scheduler_named(journal.scheduler, retry_for=retry_for))


def _lines(status: RunStatus) -> list[str]:
    head = [status.name]
    if status.scheduler is not None and status.submitted is not None:
        head += [status.scheduler, f"submitted {ago(status.submitted)}"]
    if status.cancelled:
        head.append("cancelled")
    rows = [(step.step, step.state, step.job or "", _time(step), _about(step)) for step in status.steps]
    return ["  ".join(head), *table(rows)]


def _overview(name: str, points: list[RunStatus]) -> list[str]:
    """A sweep: how many points are where, and each with the step that counts."""
    steps = [_at(point) for point in points]
    counts = Counter("cancelled" if point.cancelled else step.state for point, step in zip(points, steps, strict=True))
    rows = [
        (point.name, step.step, step.state, step.job or "", _time(step), _about(step))
        for point, step in zip(points, steps, strict=True)
    ]
    return [f"{name}  {len(points)} points: {', '.join(f'{n} {state}' for state, n in counts.items())}", *table(rows)]


def _at(point: RunStatus) -> StepStatus:
    """The step that says where a run is: the one at work; else the first that is not done; the last when all are."""
    running = (step for step in point.steps if step.state == "running")
    left = (step for step in point.steps if step.state != "done")
    return next(running, None) or next(left, None) or point.steps[-1]


def _time(step: StepStatus) -> str:
    started = step.seconds is not None and step.state not in ("waiting", "requeued")
    never = step.state == "cancelled" and (step.seconds or 0) < 1  # Slurm gives a job that never ran a start
    return duration(step.seconds) if started and not never and step.seconds is not None else ""


def _about(step: StepStatus) -> str:
    parts = []
    if step.summary is not None:
        parts.append(step.summary)
    if step.progress is not None:
        parts += _progress(step.progress)
    elif step.state == "running":
        parts.append("no sign of progress yet")
    if step.state == "waiting" and step.after:
        parts.append(f"after {', '.join(step.after)}")
    elif step.reason is not None:
        parts.append(step.reason)
    if step.saved is not None:
        parts.append(f"saved at {step.saved}")
    if step.expected_start is not None:
        parts.append(f"starts about {clock(step.expected_start)}")
    if step.restarts:
        parts.append(f"restarts {step.restarts}")
    if step.nodes and step.state == "running":
        parts.append(f"on {step.nodes}")
    if step.mesh is not None and step.state != "done":
        parts.append(step.mesh)
    return "  ".join(parts)


def _progress(progress: Progress) -> list[str]:
    unit = progress.unit.removesuffix("s")
    parts = [f"{unit} {progress.done:,}" + (f"/{progress.total:,}" if progress.total else "")]
    if progress.total:
        parts.append(f"{progress.done / progress.total:.0%}")
    if progress.loss is not None:
        parts.append(f"audio loss {progress.loss:.3g}")
    if progress.tokens_per_second is not None:
        parts.append(f"{rate(progress.tokens_per_second)} tok/s")
    if progress.eta is not None:
        parts.append(f"ETA {duration(progress.eta)}")
    if progress.age > SECONDS_OF_SILENCE:
        parts.append(f"silent for {duration(progress.age)}")
    return parts
