"""One training at a time in a run's folder: a lock that the operating system lets go of when its owner dies.

    <run>/train.lock    locked by `flock`; says who holds it: host, process, scheduler's job, since when

The file stays, the lock on it does not: what a killed process has left is taken over at once. Linux passes `flock` on
to NFS servers and to Lustre mounted with `flock`, so it holds between machines; where a file system is mounted with
locks of its own machine only (NFS with `nolock` or `local_lock`, Lustre with `localflock`), two machines do not see
each other's trainings.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from higgsc.contract.outcome import ExitCode, StepError

LOCK_FILE = "train.lock"
WAIT_SECONDS = 120.0
"""How long a requeued Slurm job waits for what is left of itself: a server may hold a dead machine's lock on."""
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_JOB_IDS = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")

logger = logging.getLogger(__name__)


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Keep other trainings out of a run's folder while the block runs; for the first process of a training.

    Raises:
        StepError: Another one is at work there (74), named by host, process and job.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK_FILE).open("a+", encoding="utf-8") as stream:
        _lock(run, stream)
        stream.truncate(0)
        stream.write(json.dumps(_owner()) + "\n")
        stream.flush()
        yield


def _lock(run: Path, stream: TextIO) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner, job = _read(stream), os.environ.get("SLURM_JOB_ID")
            if job is None or owner.get("SLURM_JOB_ID") != job or time.monotonic() > end:
                raise _held(run, owner) from error
            logger.info("waiting for process %s on %s, of this same job, to end", owner["pid"], owner["host"])
            time.sleep(min(1.0, WAIT_SECONDS))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: this file system has no locks; a second training here would go unnoticed", run)
            return
        else:
            return


def _owner() -> dict[str, str | int]:
    jobs = {name: os.environ[name] for name in _JOB_IDS if os.environ.get(name, "none") != "none"}
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), **jobs}


def _read(stream: TextIO) -> dict[str, str | int]:
    stream.seek(0)
    try:
        owner: dict[str, str | int] = json.loads(stream.read())
    except ValueError:  # it has the lock, and has not written yet who it is
        return {}
    return owner


def _held(run: Path, owner: dict[str, str | int]) -> StepError:
    host, pid = owner.get("host", "an unknown host"), owner.get("pid", "unknown")
    job = f", Slurm job {owner['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in owner else ""
    since = f", since {owner['since']}" if "since" in owner else ""
    return StepError(
        f"another training is at work in this folder: process {pid} on {host}{job}{since}",
        code=ExitCode.IO,
        path=run,
        help="wait for it or stop it (`higgsc cancel`), or give this spec another `name` or `output`",
    )
