"""Jobs of an earlier submit that are still at work: what must not happen under them."""

from __future__ import annotations

from collections.abc import Mapping

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.build import LOCK
from higgsc.launch.built import Target
from higgsc.launch.journal import Journal, digest_of, read_journal
from higgsc.launch.scheduler import JobStatus, Scheduler, scheduler_named


def live_jobs(target: Target, journal: Journal | None, scheduler: Scheduler) -> dict[str, JobStatus]:
    """The jobs of the journal that the scheduler still has in its hands, by step."""
    if journal is None or not journal.jobs:
        return {}
    asked = scheduler if journal.scheduler == scheduler.name else scheduler_named(journal.scheduler)
    return {name: status for name, status in asked.states(target, journal.jobs).items() if status.live}


def refuse_other_work(journal: Journal | None, live: Mapping[str, JobStatus], *, digest: str, scheduler: str) -> None:
    """Refuse to go on while jobs of another build, or on another scheduler, work in the same folder.

    Raises:
        StepError: They do (1).
    """
    if journal is None or not live:
        return
    jobs = ", ".join(f"{name} ({journal.steps[name].job})" for name in live)
    if journal.digest != digest:
        raise StepError(
            f"the spec has changed, and jobs of the earlier build are still at work: {jobs}",
            code=ExitCode.DIAGNOSTICS,
            help=f"wait for them, `higgsc cancel {journal.plan}`, or give the new one another folder with `output:`",
        )
    if journal.scheduler != scheduler:
        raise StepError(
            f"this run is at work on {journal.scheduler} already: {jobs}",
            code=ExitCode.DIAGNOSTICS,
            help=f"wait for it, or `higgsc cancel {journal.plan}`",
        )


def refuse_to_rebuild(lock: str, target: Target) -> None:
    """Refuse to write a build over the one that jobs are at work with; job files are read when a job starts.

    Args:
        lock: Text of the lock that would be written.
        target: The build that the run was started from.

    Raises:
        StepError: Jobs of it are queued or running (1).
    """
    journal = read_journal(target.run)
    digest = digest_of(lock, target.folder / LOCK)
    if journal is None or journal.digest == digest:
        return
    scheduler = scheduler_named(journal.scheduler)
    live = live_jobs(target, journal, scheduler)
    refuse_other_work(journal, live, digest=digest, scheduler=scheduler.name)


def refuse_to_remove(target: Target) -> None:
    """Refuse to delete a build that jobs are at work with.

    Raises:
        StepError: Jobs of it are queued or running (1).
    """
    journal = read_journal(target.run)
    if journal is not None:
        live = live_jobs(target, journal, scheduler_named(journal.scheduler))
        refuse_other_work(journal, live, digest="", scheduler=journal.scheduler)


def digest_at(target: Target) -> str:
    """The digest of a build on disk."""
    lock = target.folder / LOCK
    try:
        return digest_of(lock.read_text("utf-8"), lock)
    except FileNotFoundError as error:
        raise StepError("no lock here", code=ExitCode.MISSING_INPUT, path=lock, help="run `higgsc build`") from error
