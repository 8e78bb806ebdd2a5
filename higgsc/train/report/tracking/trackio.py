"""trackio: figures in a local database, shown by `trackio show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from higgsc.contract.jobs import TrainJob


class Trackio:
    """Writes to trackio's own folder (`TRACKIO_DIR`).

    Args:
        job: Shown as the run's configuration; it holds no secrets.
        identity: Part of the run's name there, so that a training that starts over does not go on with the old curve.
    """

    def __init__(self, job: TrainJob, *, identity: str) -> None:
        self._run: Any = trackio.init(
            project=job.tracking.project,
            name=f"{job.name}-{identity}",
            config=job.model_dump(mode="json"),
            resume="allow",
            embed=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        self._run.log({name: trackio.Audio(str(wav), caption=caption)}, step=step)

    def flush(self) -> None:
        """trackio writes in the background, twice a second."""

    def close(self) -> None:
        self._run.finish()
