"""One training at a time in a run's folder: `<run>/train.lock` says who is at work there."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from higgsc.contract.lock import Owner, held
from higgsc.contract.outcome import ExitCode, StepError

LOCK_FILE = "train.lock"
WAIT_SECONDS = 120.0
"""How long a requeued Slurm job waits for what is left of itself: a server may hold a dead machine's lock on."""


def hold_run(run: Path) -> AbstractContextManager[None]:
    """Keep other trainings out of a run's folder while the block runs; for the first process of a training.

    Raises:
        StepError: Another one is at work there (74), named by host, process and job.
    """

    def refusal(owner: Owner) -> StepError:
        job = f", Slurm job {owner.slurm_job}" if owner.slurm_job else ""
        since = f", since {owner.since}" if owner.since else ""
        return StepError(
            f"another training is at work in this folder: {owner.process}{job}{since}",
            code=ExitCode.IO,
            path=run,
            help="wait for it or stop it (`higgsc cancel`), or give this spec another `name` or `output`",
        )

    def patience(owner: Owner) -> float:
        job = os.environ.get("SLURM_JOB_ID")
        return WAIT_SECONDS if job is not None and owner.slurm_job == job else 0.0

    return held(run / LOCK_FILE, "train", refusal=refusal, patience=patience)
