"""End runs without losing what they have done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from higgsc.contract.state import read_state
from higgsc.contract.stop import request_stop
from higgsc.launch.built import Target
from higgsc.launch.folder import mark_cancelled
from higgsc.launch.journal import read_journal
from higgsc.launch.scheduler import Scheduler

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """How a job came to its end."""

    step: str
    job: str
    how: str
    """`waited`: had not started. `saved`: ended by itself. `ended`: had nothing to save, or took too long."""
    kept: str | None
    """What is saved, as done/total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """The jobs of a run that was told to end."""

    target: Target
    scheduler: Scheduler
    waiting: dict[str, str]
    """Taken out of the queue. Job ids by step, here and below."""
    at_once: dict[str, str]
    """Ended without asking: a step without a state has nothing that it could save."""
    saving: dict[str, str]
    """Asked to save and end."""


def cancel(
    runs: Sequence[tuple[Target, Scheduler]], *, wait: float, say: Callable[[str], None]
) -> list[list[Cancelled]]:
    """Take waiting jobs out of the queue, ask running ones to save and end, and end by force those that do not.

    Args:
        runs: The builds, each with the scheduler of its journal. All are asked before any is waited for.
        wait: Seconds that running steps may take to save.
        say: Called with what is being waited for.

    Returns:
        For each run, a row for each job that was in the scheduler's hands.
    """
    endings = [_ask(target, scheduler) for target, scheduler in runs]
    saving = [ending.saving for ending in endings]
    if names := [_name(ending, step, endings) for ending in endings for step in ending.saving]:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        say(f"waiting up to {wait:.0f} s for {shown} to save (Ctrl-C leaves it saving)")
    late = _wait(endings, saving, wait)
    for ending, jobs in zip(endings, late, strict=True):
        ending.scheduler.cancel(ending.target, jobs)
    _wait(endings, [{**ending.at_once, **jobs} for ending, jobs in zip(endings, late, strict=True)], wait)
    return [_rows(ending, jobs) for ending, jobs in zip(endings, late, strict=True)]


def _ask(target: Target, scheduler: Scheduler) -> _Ending:
    run, journal = target.run, read_journal(target.run)
    jobs = journal.jobs if journal is not None else {}
    states = scheduler.states(target, jobs) if jobs else {}
    waiting = {name: jobs[name] for name, status in states.items() if status.phase == "waiting"}
    running = {name: jobs[name] for name, status in states.items() if status.phase == "running"}
    at_once = {name: job for name, job in running.items() if read_state(run, name) is None}
    if waiting or running:
        mark_cancelled(run)  # before the stop request: a step that ends must not be requeued
        request_stop(run)
        scheduler.cancel(target, {**waiting, **at_once})
    saving = {name: job for name, job in running.items() if name not in at_once}
    return _Ending(target=target, scheduler=scheduler, waiting=waiting, at_once=at_once, saving=saving)


def _name(ending: _Ending, step: str, endings: Sequence[_Ending]) -> str:
    return step if len(endings) == 1 else f"{step} of {ending.target.plan.name}"


def _wait(endings: Sequence[_Ending], jobs: list[dict[str, str]], seconds: float) -> list[dict[str, str]]:
    """The jobs of each run that are still at work after that time."""
    deadline = time.monotonic() + seconds
    left = jobs
    while any(left):
        left = [_live(ending, of_run) for ending, of_run in zip(endings, left, strict=True)]
        if time.monotonic() > deadline:
            break
        if any(left):
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return left


def _live(ending: _Ending, jobs: dict[str, str]) -> dict[str, str]:
    states = ending.scheduler.states(ending.target, jobs) if jobs else {}
    return {name: job for name, job in jobs.items() if states[name].live}


def _rows(ending: _Ending, late: dict[str, str]) -> list[Cancelled]:
    rows = [
        Cancelled(step=name, job=job, how=how, kept=_kept(ending.target, name))
        for jobs, how in ((ending.waiting, "waited"), (ending.at_once, "ended"), (ending.saving, "saved"))
        for name, job in jobs.items()
    ]
    rows = [replace(row, how="ended") if row.step in late else row for row in rows]
    order = [step.name for step in ending.target.plan.steps]
    return sorted(rows, key=lambda row: order.index(row.step))


def _kept(target: Target, step: str) -> str | None:
    state = read_state(target.run, step)
    return f"{state.done}/{state.total}" if state is not None else None
