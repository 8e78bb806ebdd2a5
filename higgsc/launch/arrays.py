"""A sweep to job arrays, each exactly once: `launch/submit.py` for all points together.

Every point keeps its own journal, in which the id of a job is that of a task: `status`, `logs`, `cancel` and a later
submit of the point alone know nothing of arrays.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from higgsc.launch.folder import SUBMIT, held
from higgsc.launch.submit import Opening, Row, announce, drafted, opened, rows_of
from higgsc.launch.sweep import ArrayScheduler, Handover, Sweep, handovers

FILES_BESIDE_THE_LOCKS = 100


def submit_sweep(sweep: Sweep, scheduler: ArrayScheduler) -> list[list[Row]]:
    """Hand over what has to run, the same step of all points as one array where it can be one.

    Returns:
        For each point what `submit` returns.

    Raises:
        StepError: As `submit`, for any of the points; nothing is submitted then, unless the scheduler took some arrays
            and not others. Those stay, and another submit finds them.
    """
    _allow_files(len(sweep.points) + FILES_BESIDE_THE_LOCKS)
    with ExitStack() as locks:
        for point in sweep.points:
            locks.enter_context(held(point.run, SUBMIT))
        openings = drafted_sweep(sweep, scheduler)
        parts = parts_of(sweep, openings)
        for part in parts:
            _check(sweep, part, scheduler)
        keys = [
            {part.step: part.keys()[index] for part in parts if index in part.tasks}
            for index in range(len(sweep.points))
        ]
        for point, opening, of_point in zip(sweep.points, openings, keys, strict=True):
            announce(point, opening, scheduler, keys=of_point)
        jobs = [opening.jobs for opening in openings]
        ids: dict[str, str] = {}
        for part in parts:
            for index, job in _hand_over(sweep, part, scheduler, jobs, ids).items():
                jobs[index][part.step] = job
                openings[index].draft.journal.record(sweep.points[index].run, part.step, state="submitted", job=job)
    return [rows_of(*of_point) for of_point in zip(sweep.points, openings, jobs, strict=True)]


def drafted_sweep(sweep: Sweep, scheduler: ArrayScheduler) -> list[Opening]:
    """What a submit would do now about each point.

    Raises:
        StepError: As `submit`.
    """
    drafts = [drafted(point, scheduler) for point in sweep.points]
    keys = [submission.key for draft in drafts for submission in draft.submissions]
    found = scheduler.find(sweep.points[0], keys) if keys else {}
    return [opened(draft, found) for draft in drafts]


def parts_of(sweep: Sweep, openings: Sequence[Opening]) -> list[Handover]:
    """The arrays, and single jobs, that are left to submit."""
    return handovers(sweep, [opening.left for opening in openings], [opening.jobs for opening in openings])


def commands_of(sweep: Sweep, openings: Sequence[Opening], scheduler: ArrayScheduler) -> list[tuple[str, ...]]:
    """What a submit would execute, in order; ids not known yet as `<step>`."""
    checks, submits = [], []
    jobs = [opening.jobs for opening in openings]
    for part in parts_of(sweep, openings):
        if part.after is not None:
            check, *rest = scheduler.array_commands(sweep, part, part.after)
        else:
            ((index, submission),) = part.tasks.items()
            check, *rest = scheduler.commands(sweep.points[index], [submission], jobs[index])
        checks.append(check)
        submits += rest
        for index in part.tasks:
            jobs[index][part.step] = part.name if part.after is None else f"{part.name}_{index}"
    return [*checks, *submits]


def _check(sweep: Sweep, part: Handover, scheduler: ArrayScheduler) -> None:
    if part.after is not None:
        scheduler.check_array(sweep, part)
        return
    for index, submission in part.tasks.items():
        scheduler.check(sweep.points[index], [submission])


def _hand_over(
    sweep: Sweep,
    part: Handover,
    scheduler: ArrayScheduler,
    jobs: Sequence[Mapping[str, str]],
    ids: dict[str, str],
) -> dict[int, str]:
    """Job ids by index.

    Args:
        sweep: The sweep.
        part: What to hand over.
        scheduler: To whom.
        jobs: Ids of the jobs there are, for each point by step.
        ids: Of the arrays submitted so far, by name; the new one is added.
    """
    if part.after is not None:
        array = scheduler.submit_array(sweep, part, [ids.get(name, name) for name in part.after])
        ids[part.name] = array
        return {index: f"{array}_{index}" for index in part.tasks}
    ((index, submission),) = part.tasks.items()
    ((_, job),) = scheduler.submit(sweep.points[index], [submission], jobs[index])
    return {index: job}


def _allow_files(count: int) -> None:
    """Let this process have that many files open, if the system does: each point's lock is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
