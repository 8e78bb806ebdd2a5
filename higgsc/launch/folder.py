"""The run's folder while somebody works in it: one at a time, and a marker for runs that were cancelled."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.stop import forget_stop

LOCK = ".lock"
CANCELLED = "cancelled"
"""`<run>/cancelled`: the batch scripts do not requeue a step when they see it."""
SECONDS_FOR_A_SUBMIT = 120.0
"""How long a second `submit` waits for the first one, which talks to the scheduler."""

SECONDS_FOR_A_LOOK = 0.5
"""`runner_at_work` takes the lock for a moment."""


@contextmanager
def held(run: Path, command: str) -> Iterator[None]:
    """Hold the run's lock.

    A second submit waits for the first, and then finds its jobs. A run on this machine keeps the lock for as long as
    it works: two of them would overwrite each other's checkpoints.

    Raises:
        StepError: Somebody else holds it (74); the message says who.
    """
    run.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (run / LOCK).open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read().strip() or "higgsc"
                patience = SECONDS_FOR_A_SUBMIT if "submit" in holder else SECONDS_FOR_A_LOOK
                if time.monotonic() - started > patience:
                    raise StepError(
                        f"another `{holder}` is working in this folder",
                        code=ExitCode.IO,
                        path=run,
                        help="wait for it (`higgsc status`), end it (`higgsc cancel`), or change `output` in the spec",
                    ) from error
                time.sleep(0.1)
        lock.truncate(0)
        lock.write(f"higgsc {command} (process {os.getpid()} on {socket.gethostname()})\n")
        lock.flush()
        yield


def runner_at_work(run: Path) -> bool:
    """Whether a `higgsc run` holds the run's lock."""
    if not (run / LOCK).is_file():
        return False
    with (run / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            return lock.read().startswith("higgsc run ")
    return False


def start_afresh(run: Path) -> None:
    """Take back what an earlier `cancel` asked for."""
    (run / CANCELLED).unlink(missing_ok=True)
    forget_stop(run)


def mark_cancelled(run: Path) -> None:
    """Say that the run is to end; whoever starts a step looks here first."""
    (run / CANCELLED).touch()


def was_cancelled(run: Path) -> bool:
    return (run / CANCELLED).exists()
