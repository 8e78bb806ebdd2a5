"""`higgsc cancel`: end a run, its work saved."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from higgsc.cli.launching import asked_about
from higgsc.cli.words import table
from higgsc.launch.cancel import Cancelled, cancel
from higgsc.launch.journal import read_journal
from higgsc.launch.scheduler import scheduler_named

CANCELLATION_SCHEMA = "higgsc.cancellation/v1"


@click.command("cancel")
@click.argument("name", metavar="RUN|SPEC|BUILD", type=click.Path(path_type=Path))
@click.option(
    "--wait", metavar="SECONDS", type=click.FloatRange(min=0), default=300.0,
    help="How long the running step may take to save before it is ended [300].",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(name: Path, wait: float, as_json: bool) -> None:
    """End a run: waiting steps at once, the running one after it has saved a checkpoint.

    Of a sweep, all points at once. Submitting again takes a run up where it was."""
    runs, names = [], []
    for target in asked_about(name):
        journal = read_journal(target.run)
        names.append((target.plan.name, str(target.run)))
        if journal is not None:
            runs.append((target, scheduler_named(journal.scheduler)))
    ended = cancel(runs, wait=wait, say=lambda text: click.echo(text, err=True))
    rows_of = {str(target.run): rows for (target, _), rows in zip(runs, ended, strict=True)}
    documents = [
        {"name": title, "run": run, "jobs": [asdict(row) for row in rows_of.get(run, [])]} for title, run in names
    ]
    if not as_json:
        for title, run in names:
            _show(title, rows_of.get(run, []))
    if as_json:
        click.echo(json.dumps({"schema": CANCELLATION_SCHEMA, "runs": documents}, indent=2, ensure_ascii=False))


def _show(name: str, rows: list[Cancelled]) -> None:
    if not rows:
        click.echo(f"{name}: nothing is queued or running")
        return
    words = {"waited": "taken out of the queue", "saved": "saved and ended", "ended": "ended"}
    kept = [f"{row.kept} is saved" if row.kept else "" for row in rows]
    lines = table([(row.step, row.job, words[row.how], text) for row, text in zip(rows, kept, strict=True)])
    click.echo("\n".join([f"{name}  cancelled", *lines]))
