"""A build to jobs, each exactly once: what holds is skipped, what is at work is found, the rest is handed over.

What may go wrong between `sbatch` and our noting its answer is covered from both ends. Before a job is handed over,
the journal says `submitting` with the idempotency key that the job carries; a later submit asks the scheduler for that
key before it hands anything over. A lock keeps two submits on one file system apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import read_receipt, why_stale
from higgsc.launch.at_work import digest_at, live_jobs, refuse_other_work
from higgsc.launch.built import BuiltStep, Target
from higgsc.launch.folder import SUBMIT, held, start_afresh, was_cancelled
from higgsc.launch.journal import Journal, JournalStep, now, read_journal
from higgsc.launch.scheduler import Scheduler, Submission

Action = Literal["done before", "at work", "found", "submitted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a submit did about one step."""

    step: str
    action: Action
    """`at work`: by an earlier submit. `found`: handed over by a submit that died before it could note it."""
    job: str | None
    after: tuple[str, ...]
    """Steps that have to finish before it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A draft, and which of its submissions the scheduler turns out to have already."""

    draft: Draft
    adopted: Mapping[str, str]
    """Job ids, by step, of those that it has."""
    left: tuple[Submission, ...]

    @property
    def jobs(self) -> dict[str, str]:
        """Job ids, by step, of what is in the scheduler's hands."""
        return {**self.draft.at_work, **self.adopted}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What would be done."""

    journal: Journal
    skipped: tuple[str, ...]
    at_work: Mapping[str, str]
    """Job ids by step."""
    submissions: tuple[Submission, ...]
    superseded: Mapping[str, str]
    """Job ids, by step, of waiting jobs whose predecessor is handed over anew: they would never start."""


def submit(target: Target, scheduler: Scheduler) -> list[Row]:
    """Hand over what has to run.

    Raises:
        StepError: Another build of this run is at work (1), somebody else works in the folder (74), the scheduler
            refuses a job (`RefusedError`, 1) or does not answer (69). Jobs that were handed over before stay, and
            another submit finds them.
    """
    run = target.run
    with held(run, SUBMIT):
        draft = drafted(target, scheduler)
        found = scheduler.find(target, [s.key for s in draft.submissions]) if draft.submissions else {}
        opening = opened(draft, found)
        if opening.left:
            scheduler.check(target, opening.left)
        announce(target, opening, scheduler)
        jobs = opening.jobs
        for name, job in scheduler.submit(target, opening.left, jobs):
            jobs[name] = job
            draft.journal.record(run, name, state="submitted", job=job)
    return rows_of(target, opening, jobs)


def opened(draft: Draft, found: Mapping[str, str]) -> Opening:
    """What is left of a draft.

    Args:
        draft: The draft.
        found: Job ids by key, as from `Scheduler.find`.
    """
    return Opening(
        draft=draft,
        adopted={s.step.name: found[s.key] for s in draft.submissions if s.key in found},
        left=tuple(s for s in draft.submissions if s.key not in found),
    )


def announce(target: Target, opening: Opening, scheduler: Scheduler, *, keys: Mapping[str, str] | None = None) -> None:
    """Make room for what is about to be handed over, and note it in the journal with the keys to find it by.

    Args:
        target: The build.
        opening: What will be handed over.
        scheduler: Who has the jobs that these supersede.
        keys: Of steps that go under another key than that of their submission.
    """
    draft, journal = opening.draft, opening.draft.journal
    if opening.left:
        scheduler.cancel(target, draft.superseded)
        start_afresh(target.run)
    for submission in draft.submissions:
        name = submission.step.name
        attempt = journal.steps[name].attempt + (journal.steps[name].job is not None)
        key = (keys or {}).get(name, submission.key)
        journal.steps[name] = JournalStep(state="submitting", attempt=max(1, attempt), key=key, submitted=now())
    for name, job in opening.adopted.items():
        journal.steps[name] = journal.steps[name].model_copy(update={"state": "submitted", "job": job})
    for name in draft.skipped:
        changes = {"state": "skipped", "reason": "done before, nothing changed"}
        journal.steps[name] = journal.steps[name].model_copy(update=changes)
    journal.save(target.run)


def drafted(target: Target, scheduler: Scheduler) -> Draft:
    """What a submit would do now, going by receipts, the journal and the scheduler.

    Raises:
        StepError: As `submit`.
    """
    run, digest = target.run, digest_at(target)
    earlier = read_journal(run)
    live = live_jobs(target, earlier, scheduler)
    refuse_other_work(earlier, live, digest=digest, scheduler=scheduler.name)
    if live and was_cancelled(run):
        raise StepError(
            f"{target.plan.name} is being cancelled, and {', '.join(live)} still at work",
            code=ExitCode.DIAGNOSTICS,
            help="submit again when `higgsc status` shows that it has ended",
        )
    journal = Journal(
        plan=target.plan.name,
        build=os.path.relpath(target.folder, target.root),
        root=os.path.relpath(target.root, run),
        digest=digest,
        scheduler=scheduler.name,
        submitted=now(),
        steps={
            step.name: (earlier.steps.get(step.name) if earlier else None) or JournalStep()
            for step in target.plan.steps
        },
    )
    at_work: dict[str, str] = {}
    superseded: dict[str, str] = {}
    needed = _before(target, [name for name, status in live.items() if status.phase == "running"])
    skipped: list[str] = []
    submissions: list[Submission] = []
    again: set[str] = set()
    for step in target.plan.steps:
        job = journal.steps[step.name].job or ""
        anew = {submission.step.name for submission in submissions}
        if step.name in live and not (live[step.name].phase == "waiting" and anew & set(step.needs)):
            at_work[step.name] = job
            again.add(step.name)
        elif step.name in needed or _holds(step, target, again):
            skipped.append(step.name)
        else:
            if step.name in live:
                superseded[step.name] = job
            again.add(step.name)
            after = tuple(need for need in step.needs if need in again)
            known = earlier is not None and earlier.digest == digest
            submissions.append(Submission(step=step, key=_key(target, step, journal, known=known), after=after))
    return Draft(
        journal=journal,
        skipped=tuple(skipped),
        at_work=at_work,
        submissions=tuple(submissions),
        superseded=superseded,
    )


def _holds(step: BuiltStep, target: Target, again: set[str]) -> bool:
    """Whether a step has nothing to do: its receipt holds, and nothing before it runs again."""
    receipt = read_receipt(target.run, step.name)
    fresh = why_stale(receipt, job_path=target.root / step.job_path, root=target.root) is None
    return fresh and not any(need in again for need in step.needs)


def _before(target: Target, names: Sequence[str]) -> set[str]:
    """The steps that those named need, directly or not: what a running job has read must not be made again."""
    needed: set[str] = set()
    for step in reversed(target.plan.steps):
        if step.name in names or step.name in needed:
            needed.update(step.needs)
    return needed


def _key(target: Target, step: BuiltStep, journal: Journal, *, known: bool) -> str:
    """The idempotency key: the same for every submit of this build's step until a job of it is known to have ended.

    Args:
        target: The build.
        step: The step.
        journal: The journal.
        known: Whether what it says of the step is about this very build. The scheduler may then have heard of a
            submission whose answer is not noted, under the key that is: a task of an array goes by the array's.
    """
    entry = journal.steps[step.name]
    if known and entry.state == "submitting" and entry.key is not None:
        return entry.key
    attempt = max(1, entry.attempt + (entry.job is not None))
    text = "\n".join((str(target.run), step.name, journal.digest, str(attempt)))
    return f"higgsc:{sha256(text.encode()).hexdigest()[:16]}"


def rows_of(target: Target, opening: Opening, jobs: Mapping[str, str]) -> list[Row]:
    """What was done about each step, by the ids of all jobs in the scheduler's hands."""
    return [_row(step, opening.draft, opening.adopted, jobs) for step in target.plan.steps]


def _row(step: BuiltStep, draft: Draft, adopted: Mapping[str, str], jobs: Mapping[str, str]) -> Row:
    action: Action = (
        "done before"
        if step.name in draft.skipped
        else "at work"
        if step.name in draft.at_work
        else "found"
        if step.name in adopted
        else "submitted"
    )
    after = tuple(need for need in step.needs if need in jobs)
    return Row(step=step.name, action=action, job=jobs.get(step.name), after=after)
