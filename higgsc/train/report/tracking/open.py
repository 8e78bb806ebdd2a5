"""Open the trackers that a job names, once it is sure that they are there."""

from __future__ import annotations

import importlib.util
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import write_atomically
from higgsc.data.loading import first_line
from higgsc.train.report.tracking.tracker import Guarded, Tracker

logger = logging.getLogger(__name__)

IDENTITY_FILE = "tracking-id"


def check_trackers(job: TrainJob) -> None:
    """Find out before anything is loaded whether the training can be tracked as the job says.

    Raises:
        StepError: If a package is missing (66), or W&B has no key (2).
    """
    for name in job.tracking.to:
        if importlib.util.find_spec(name) is None:
            raise StepError(
                f"the spec tracks the training with {name}, and the package `{name}` is not installed here",
                code=ExitCode.MISSING_INPUT,
                help=f"`pip install {name}` in the environment of the steps, or leave `{name}` out of `tracking.to`",
            )
    if "wandb" in job.tracking.to:
        from higgsc.train.report.tracking.wandb import need_key

        need_key(job)


def open_trackers(job: TrainJob, run: Path, *, start: int) -> list[Guarded]:
    """The job's trackers. One that cannot be opened, say for want of a network, is reported and left out.

    Args:
        job: Names them.
        run: The run's folder.
        start: The last step whose figures are valid.
    """

    # Imported where they are asked for: two of them need not be installed, and all take long to import.
    def tensorboard() -> Tracker:
        from higgsc.train.report.tracking.tensorboard import TensorBoard

        return TensorBoard(run, start=start)

    def wandb() -> Tracker:
        from higgsc.train.report.tracking.wandb import WeightsAndBiases

        return WeightsAndBiases(job, run, identity=_identity(run))

    def trackio() -> Tracker:
        from higgsc.train.report.tracking.trackio import Trackio

        return Trackio(job, identity=_identity(run))

    makers: dict[str, Callable[[], Tracker]] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}
    opened = []
    for name in job.tracking.to:
        try:
            opened.append(Guarded(name, makers[name]()))
        except Exception as error:
            # Of whatever type: what libraries of trackers raise is none of a training's business.
            logger.warning(
                "%s cannot be opened, training goes on without it: %s", name, first_line(error), exc_info=True
            )
    return opened


def _identity(run: Path) -> str:
    """What tells this training from others of its name: made up once, kept in the run's folder."""
    path = run / IDENTITY_FILE
    if not path.exists():
        write_atomically(path, secrets.token_hex(4) + "\n")
    return path.read_text("utf-8").strip()
