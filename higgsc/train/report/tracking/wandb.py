"""Weights & Biases: one run there for all attempts of a training."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb

from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError

HOST = "https://api.wandb.ai"


class WeightsAndBiases:
    """Sends figures to W&B, or keeps them in `<run>/wandb/` for `wandb sync`.

    Args:
        job: Shown as the run's configuration; it holds no secrets.
        run: The run's folder.
        identity: Names the run at W&B; the same for all attempts, which thereby become one curve.
    """

    def __init__(self, job: TrainJob, run: Path, *, identity: str) -> None:
        tracking = job.tracking
        self._run: Any = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            name=job.name,
            id=identity,
            resume="allow",
            dir=str(run),
            mode="offline" if tracking.offline else None,  # None: as WANDB_MODE says, online without it
            config=job.model_dump(mode="json"),
            settings=wandb.Settings(console="off", disable_git=True, silent=True),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        self._run.log({name: wandb.Audio(str(wav), caption=caption)}, step=step)

    def flush(self) -> None:
        """W&B has a process of its own that writes what it is given."""

    def close(self) -> None:
        self._run.finish()


def need_key(job: TrainJob) -> None:
    """Refuse to go on where W&B would ask for a key in a prompt that nobody answers.

    Raises:
        StepError: If the training is to send figures and finds no key.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if job.tracking.offline or mode != "online" or os.environ.get("WANDB_API_KEY"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", HOST)).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        if file.is_file() and netrc.netrc(str(file)).authenticators(host) is not None:
            return
    except netrc.NetrcParseError as error:
        raise StepError(f"cannot be read: {error.msg}", path=file, line=error.lineno, code=ExitCode.USAGE) from error
    raise StepError(
        "the spec tracks the training with W&B, and there is no key for it here",
        code=ExitCode.USAGE,
        help="name WANDB_API_KEY in `secrets`, or run `wandb login` here, or set `tracking.offline: true`",
    )
