"""The run's folder while somebody works in it: one at a time, and a marker for runs that were cancelled."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from higgsc.contract import lock
from higgsc.contract.lock import Owner
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.stop import forget_stop

RUN: Final = "run"
SUBMIT: Final = "submit"
"""Commands that hold the lock."""
LOCK = ".lock"
CANCELLED = "cancelled"
"""`<run>/cancelled`: the batch scripts do not requeue a step when they see it."""
SECONDS_FOR_A_SUBMIT = 120.0
"""How long a second `submit` waits for the first one, which talks to the scheduler."""

SECONDS_FOR_A_LOOK = 0.5
"""`runner_at_work` takes the lock for a moment."""


def held(run: Path, command: str) -> AbstractContextManager[None]:
    """Hold the run's lock.

    A second submit waits for the first, and then finds its jobs. A run on this machine keeps the lock for as long as
    it works: two of them would overwrite each other's checkpoints.

    Raises:
        StepError: Somebody else holds it (74); the message says who.
    """

    def refusal(owner: Owner) -> StepError:
        return StepError(
            f"another `higgsc {owner.command or 'submit'}` ({owner.process}) is working in this folder",
            code=ExitCode.IO,
            path=run,
            help="wait for it (`higgsc status`), end it (`higgsc cancel`), or change `output` in the spec",
        )

    def patience(owner: Owner) -> float:
        return SECONDS_FOR_A_SUBMIT if owner.command == SUBMIT else SECONDS_FOR_A_LOOK

    return lock.held(run / LOCK, command, refusal=refusal, patience=patience)


def runner_at_work(run: Path) -> bool:
    """Whether a `higgsc run` holds the run's lock."""
    owner = lock.holder(run / LOCK)
    return owner is not None and owner.command == RUN


def start_afresh(run: Path) -> None:
    """Take back what an earlier `cancel` asked for."""
    (run / CANCELLED).unlink(missing_ok=True)
    forget_stop(run)


def mark_cancelled(run: Path) -> None:
    """Say that the run is to end; whoever starts a step looks here first."""
    (run / CANCELLED).touch()


def was_cancelled(run: Path) -> bool:
    return (run / CANCELLED).exists()
