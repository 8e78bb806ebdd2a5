"""Heartbeats: how far the running step is, for whoever watches (`<run>/heartbeat.json`)."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from higgsc.contract.receipts import write_atomically

SECONDS_BETWEEN_BEATS = 0.5


class Heartbeat(BaseModel):
    """What `heartbeat.json` holds; replaced in place while a step works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    done: int
    total: int | None
    unit: str
    message: str
    time: float
    """Seconds since the epoch, by the clock of the machine that runs the step."""
    loss: float | None = None
    """Audio loss of the newest figures, while training."""
    tokens_per_second: float | None = None
    """Of all processes together, while training."""
    eta: float | None = None
    """Seconds to the end of the step at its present pace, while training."""


class HeartbeatWriter:
    """Reports progress at most twice a second, whatever the pace of the work.

    Args:
        run: The run's folder.
        step: Name of the step.
        unit: What is counted: `samples`, `steps`.
        total: How many there will be, or None when that is not known yet.
        enabled: False on every rank but the first.
    """

    def __init__(self, run: Path, step: str, *, unit: str, total: int | None, enabled: bool = True) -> None:
        self.path = run / "heartbeat.json"
        self.step, self.unit, self.total, self.enabled = step, unit, total, enabled
        self._last = 0.0

    def beat(
        self,
        done: int,
        message: str = "",
        *,
        force: bool = False,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        eta: float | None = None,
    ) -> None:
        """Report `done` of `total` units; `message` is shown beside the bar. The rest is as in `Heartbeat`."""
        now = time.time()
        if not self.enabled or (now - self._last < SECONDS_BETWEEN_BEATS and not force):
            return
        self._last = now
        beat = Heartbeat(
            step=self.step,
            done=done,
            total=self.total,
            unit=self.unit,
            message=message,
            time=now,
            loss=loss,
            tokens_per_second=tokens_per_second,
            eta=eta,
        )
        write_atomically(self.path, beat.model_dump_json() + "\n")


def read_heartbeat(run: Path) -> Heartbeat | None:
    """The newest heartbeat of a run, or None before the first."""
    path = run / "heartbeat.json"
    return Heartbeat.model_validate_json(path.read_text("utf-8")) if path.is_file() else None
