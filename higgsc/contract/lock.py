"""One at a time: a lock that the operating system lets go of when its owner dies, whatever it died of.

A lock is a file locked by `flock`, whose text says who holds it. The file stays, the lock on it does not: what a killed
process has left is taken over at once. Linux passes `flock` on to NFS servers and to Lustre mounted with `flock`, so it
holds between machines; where a file system is mounted with locks of its own machine only (NFS with `nolock` or
`local_lock`, Lustre with `localflock`), two machines do not see each other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from higgsc.contract.outcome import StepError

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_SECONDS_BETWEEN_TRIES = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lock, in its own words; None for what it has not written yet."""

    command: str | None = None
    host: str | None = None
    pid: int | None = None
    since: str | None = None
    slurm_job: str | None = None

    @property
    def process(self) -> str:
        """`process 4813 on node1`."""
        return f"process {self.pid or 'unknown'} on {self.host or 'an unknown host'}"


@contextmanager
def held(
    path: Path,
    command: str,
    *,
    refusal: Callable[[Owner], StepError],
    patience: Callable[[Owner], float] = lambda owner: 0.0,
) -> Iterator[None]:
    """Hold a lock while the block works.

    Args:
        path: Its file; the folder is made.
        command: What holds it, for others to read.
        refusal: What to say if somebody else does.
        patience: Seconds to wait for somebody else in all, from the first try on.

    Raises:
        StepError: The refusal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        _lock(stream, path, refusal, patience)
        stream.truncate(0)
        stream.write(json.dumps(asdict(_myself(command))) + "\n")
        stream.flush()
        yield


def holder(path: Path) -> Owner | None:
    """Who holds a lock now; None if nobody does. Holds it for a moment to find out.

    On a file system without locks it is who last said so, unless that was a process of this machine that is gone.
    """
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(stream)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            owner = _read(stream)
            gone = owner.host == socket.gethostname() and not Path(f"/proc/{owner.pid}").exists()
            return None if gone else owner
    return None


def _lock(
    stream: TextIO, path: Path, refusal: Callable[[Owner], StepError], patience: Callable[[Owner], float]
) -> None:
    began, waiting = time.monotonic(), False
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _read(stream)
            if time.monotonic() - began >= patience(owner):
                raise refusal(owner) from error
            if not waiting:
                logger.info("waiting for %s, which holds %s", owner.process, path)
            waiting = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: this file system has no locks; a second one here would go unnoticed", path.parent)
            return
        else:
            return


def _myself(command: str) -> Owner:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Owner(command, socket.gethostname(), os.getpid(), since, os.environ.get("SLURM_JOB_ID"))


def _read(stream: TextIO) -> Owner:
    stream.seek(0)
    try:
        return Owner(**json.loads(stream.read()))
    except (ValueError, TypeError):  # it has not written yet who it is, or is another version
        return Owner()
