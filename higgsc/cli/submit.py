"""`higgsc submit`: build, then hand the steps to a scheduler."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from higgsc.cli.compiling import composition_options, relative
from higgsc.cli.launching import Launch, launches
from higgsc.cli.words import table
from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.render.text import render_text
from higgsc.contract.outcome import ExitCode
from higgsc.emit.shell import quote_argv
from higgsc.launch.arrays import commands_of, drafted_sweep, submit_sweep
from higgsc.launch.scheduler import RefusedError, Scheduler, scheduler_named
from higgsc.launch.secrets import refuse_exposed, secret_file
from higgsc.launch.submit import Draft, Row, drafted, submit
from higgsc.launch.sweep import ArrayScheduler, Sweep, sweep_of

SUBMISSION_SCHEMA = "higgsc.submission/v1"


@click.command("submit")
@click.argument("spec", metavar="SPEC|BUILD", type=click.Path(path_type=Path))
@click.option(
    "--scheduler",
    metavar="NAME",
    default="slurm",
    help="slurm, local (in the background), torchx:NAME or kubernetes [slurm].",
)
@click.option("--dry-run", "-n", is_flag=True, help="Build, print the commands that would run, submit nothing.")
@click.option("--force", is_flag=True, help="Overwrite files of the build that were edited by hand.")
@click.option(
    "--retry-for", metavar="SECONDS", type=click.FloatRange(min=0), default=60.0,
    help="How long to try while the scheduler does not answer [60].",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@composition_options
def command(
    spec: Path,
    scheduler: str,
    dry_run: bool,
    force: bool,
    retry_for: float,
    as_json: bool,
    site: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Build SPEC and hand its steps to a scheduler, each to start when those before it have succeeded.

    Steps that finished before are skipped, and those that an earlier submit handed over are found: repeating the
    command never submits anything twice. A sweep goes to Slurm as one job array a step."""
    chosen = scheduler_named(scheduler, retry_for=retry_for)
    documents = []
    here = chosen.name in ("slurm", "local")  # a cluster's nodes share the file system with its login node
    made = launches(spec, site=site, overrides=overrides, force=force, data_here=here)
    if chosen.name == "slurm":
        refuse_exposed(made[0].target.plan.secrets)
    launch = made[0]
    try:
        sweep = sweep_of([one.target for one in made])
        if sweep is not None and isinstance(chosen, ArrayScheduler):
            documents += _sweep(sweep, made, chosen, dry_run=dry_run, quiet=as_json)
        else:
            for launch in made:
                documents.append(_one(launch, chosen, dry_run=dry_run, quiet=as_json))
    except RefusedError as refused:
        _explain(refused, launch)
        sys.exit(ExitCode.DIAGNOSTICS)
    if not as_json and not dry_run:
        _note_secrets(launch, chosen)
    if as_json:
        document = {"schema": SUBMISSION_SCHEMA, "dry_run": dry_run, "runs": documents}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _one(launch: Launch, scheduler: Scheduler, *, dry_run: bool, quiet: bool) -> dict[str, Any]:
    if dry_run:
        return _dry_run(launch, scheduler, quiet=quiet)
    rows = submit(launch.target, scheduler)
    if not quiet:
        _show(launch, rows)
    return _document(launch, scheduler, rows)


def _sweep(
    sweep: Sweep, made: list[Launch], scheduler: ArrayScheduler, *, dry_run: bool, quiet: bool
) -> list[dict[str, Any]]:
    """All points together; in a dry run the commands, which are those of all, stand with the first."""
    if dry_run:
        openings = drafted_sweep(sweep, scheduler)
        commands = commands_of(sweep, openings, scheduler)
        if not quiet:
            _print_commands(sweep.root, commands)
            for launch, opening in zip(made, openings, strict=True):
                _print_rest(opening.draft, f"{launch.target.plan.name}, ")
        return [
            _dry_document(launch, scheduler, opening.draft, [] if index else commands)
            for index, (launch, opening) in enumerate(zip(made, openings, strict=True))
        ]
    rows = submit_sweep(sweep, scheduler)
    if not quiet:
        _show_sweep(sweep, rows)
    return [_document(launch, scheduler, of_point) for launch, of_point in zip(made, rows, strict=True)]


def _dry_run(launch: Launch, scheduler: Scheduler, *, quiet: bool) -> dict[str, Any]:
    draft = drafted(launch.target, scheduler)
    commands = scheduler.commands(launch.target, draft.submissions, draft.at_work) if draft.submissions else []
    if not quiet:
        _print_commands(launch.target.root, commands)
        _print_rest(draft, "")
    return _dry_document(launch, scheduler, draft, commands)


def _print_commands(root: Path, commands: list[tuple[str, ...]]) -> None:
    click.echo(f"cd {quote_argv([str(root)])}")
    for argv in commands:
        click.echo(quote_argv(argv))


def _print_rest(draft: Draft, of: str) -> None:
    for name in draft.skipped:
        click.echo(f"# {of}{name}: done before")
    for name, job in draft.at_work.items():
        click.echo(f"# {of}{name}: at work as {job}")


def _dry_document(
    launch: Launch, scheduler: Scheduler, draft: Draft, commands: list[tuple[str, ...]]
) -> dict[str, Any]:
    return {
        "name": launch.target.plan.name,
        "run": str(launch.target.run),
        "scheduler": scheduler.name,
        "directory": str(launch.target.root),
        "commands": commands,
        "skipped": draft.skipped,
        "at_work": draft.at_work,
    }


def _document(launch: Launch, scheduler: Scheduler, rows: list[Row]) -> dict[str, Any]:
    steps = [{"step": row.step, "action": row.action, "job": row.job, "after": row.after} for row in rows]
    return {
        "name": launch.target.plan.name,
        "run": str(launch.target.run),
        "scheduler": scheduler.name,
        "steps": steps,
    }


def _show(launch: Launch, rows: list[Row]) -> None:
    name = launch.target.plan.name
    click.echo(launch.headline)
    click.echo("\n".join(table([(row.step, row.job or "–", row.action, _next(row)) for row in rows])))
    if any(row.action != "done before" for row in rows):
        run = relative(launch.target.run)
        shown = name if Path("runs", name).resolve() == launch.target.run.resolve() else run
        click.echo(f"next: higgsc status {shown}   higgsc logs -f {shown}   higgsc cancel {shown}")
    else:
        click.echo(f"nothing to do: every step is done, see {relative(launch.target.run)}")


def _show_sweep(sweep: Sweep, rows: list[list[Row]]) -> None:
    """A line for what was done alike: the tasks of one array, or the points in which a step was done before."""
    name, total = sweep.folder.name, len(sweep.points)
    click.echo(f"{name}  {total} points  {sweep.points[0].plan.hardware} each")
    groups: dict[tuple[str, str, str, str], int] = {}
    for step in sweep.points[0].plan.steps:
        for row in (row for of_point in rows for row in of_point if row.step == step.name):
            job = (row.job or "").rpartition("_")[0] or row.job or "–"
            group = (row.step, job, row.action, _next(row))
            groups[group] = groups.get(group, 0) + 1
    lines = [(step, job, f"{n} of {total}", action, then) for (step, job, action, then), n in groups.items()]
    click.echo("\n".join(table(lines)))
    if all(action == "done before" for _, _, action, _ in groups):
        click.echo(f"nothing to do: every step of every point is done, see {relative(sweep.points[0].run.parent)}")
    else:
        shown = relative(sweep.folder) if Path("generated", name).resolve() != sweep.folder.resolve() else name
        first = relative(sweep.points[0].run)
        click.echo(f"next: higgsc status {shown}   higgsc logs -f {first}   higgsc cancel {shown}")


def _note_secrets(launch: Launch, scheduler: Scheduler) -> None:
    """Slurm would keep a secret on its disk, so that none is handed over: say where the jobs look instead."""
    absent = [name for name in launch.target.plan.secrets if not secret_file(name).is_file()]
    if scheduler.name == "slurm" and absent:
        click.echo(
            f"note: {', '.join(absent)} not handed to Slurm, which would write it to its disk; unless a login on the "
            f"nodes sets it, put it into {secret_file(absent[0])} (chmod 600)",
            err=True,
        )


def _next(row: Row) -> str:
    if row.action == "done before":
        return ""
    return f"starts after {', '.join(row.after)}" if row.after else "starts when there is room"


def _explain(refused: RefusedError, launch: Launch) -> None:
    """The scheduler's complaint at the place in the spec that it is about."""
    if launch.ir is None or refused.spec_path is None:
        raise refused
    sink = Sink()
    label = launch.ir.label(refused.spec_path)
    sink.add(Diagnostic("HC601", refused.message, label, help=refused.help))
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    click.echo(render_text(sink.diagnostics, cwd=Path.cwd(), colour=colour), err=True)
    click.echo(f"{launch.target.plan.name}: nothing was submitted", err=True)
