"""End a run without losing what it has done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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


def cancel(target: Target, scheduler: Scheduler, *, wait: float, say: Callable[[str], None]) -> list[Cancelled]:
    """Take waiting jobs out of the queue, ask the running one to save and end, and end it by force if it does not.

    Args:
        target: The build of the run.
        scheduler: That of its journal.
        wait: Seconds that a running step may take to save.
        say: Called with what is being waited for.

    Returns:
        A row for each job that was in the scheduler's hands.
    """
    run, journal = target.run, read_journal(target.run)
    if journal is None:
        return []
    jobs = journal.jobs
    states = scheduler.states(target, jobs)
    waiting = {name: jobs[name] for name, status in states.items() if status.phase == "waiting"}
    running = {name: jobs[name] for name, status in states.items() if status.phase == "running"}
    if not waiting and not running:
        return []
    mark_cancelled(run)  # before the stop request: a step that ends must not be requeued
    request_stop(run)
    scheduler.cancel(target, waiting)
    rows = [Cancelled(step=name, job=job, how="waited", kept=_kept(target, name)) for name, job in waiting.items()]
    # A step without a state has nothing that it could save.
    at_once = {name: job for name, job in running.items() if read_state(run, name) is None}
    scheduler.cancel(target, at_once)
    saving = {name: job for name, job in running.items() if name not in at_once}
    for name in saving:
        say(f"waiting up to {wait:.0f} s for {name} to save (Ctrl-C leaves it saving)")
    late = _wait(target, scheduler, saving, wait)
    scheduler.cancel(target, late)
    _wait(target, scheduler, {**at_once, **late}, wait)
    for name, job in running.items():
        how = "saved" if name in saving and name not in late else "ended"
        rows.append(Cancelled(step=name, job=job, how=how, kept=_kept(target, name)))
    order = [step.name for step in target.plan.steps]
    return sorted(rows, key=lambda row: order.index(row.step))


def _wait(target: Target, scheduler: Scheduler, jobs: dict[str, str], seconds: float) -> dict[str, str]:
    """The jobs that are still at work after that time."""
    deadline = time.monotonic() + seconds
    left = jobs
    while left:
        states = scheduler.states(target, left)
        left = {name: job for name, job in left.items() if states[name].live}
        if time.monotonic() > deadline:
            break
        if left:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return left


def _kept(target: Target, step: str) -> str | None:
    state = read_state(target.run, step)
    return f"{state.done}/{state.total}" if state is not None else None
