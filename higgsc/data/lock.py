"""One at a time: a lock beside what is written."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError


@contextmanager
def exclusive(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep others from writing `path` while the block works; the lock ends with the process, whatever ends it.

    Args:
        path: What is written; the lock is the file `.<name>.lock` beside it.
        wait: Wait for the other one instead of refusing.

    Raises:
        StepError: Another process holds it; says which (74).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise StepError(
                f"{holder} is writing this",
                code=ExitCode.IO,
                path=path,
                help="wait for it, or name another folder",
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield
