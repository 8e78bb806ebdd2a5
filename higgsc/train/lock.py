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
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held(run, stream) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning("%s: this file system has no locks; a second training here would go unnoticed", run)
        stream.truncate(0)
        stream.write(json.dumps(_owner()) + "\n")
        stream.flush()
        yield


def _owner() -> dict[str, str | int]:
    jobs = {name: os.environ[name] for name in _JOB_IDS if os.environ.get(name, "none") != "none"}
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), **jobs}


def _held(run: Path, stream: TextIO) -> StepError:
    stream.seek(0)
    try:
        owner = json.loads(stream.read())
    except ValueError:  # it has the lock, and has not written yet who it is
        owner = {}
    host, pid = owner.get("host", "an unknown host"), owner.get("pid", "unknown")
    job = f", Slurm job {owner['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in owner else ""
    since = f", since {owner['since']}" if "since" in owner else ""
    return StepError(
        f"another training is at work in this folder: process {pid} on {host}{job}{since}",
        code=ExitCode.IO,
        path=run,
        help="wait for it or stop it (`higgsc cancel`), or give this spec another `name` or `output`",
    )
