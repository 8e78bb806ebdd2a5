"""Tells people and programs how far a training is: figures, log lines, the bar, the heartbeat."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import TrainJob
from higgsc.train.report.metrics import MetricsWriter
from higgsc.train.report.screen import Screen, line
from higgsc.train.report.speed import Pace

logger = logging.getLogger(__name__)


class Reporter:
    """All that is said while a training runs; a context manager. On processes but the first it says nothing.

    Args:
        job: Says which trackers show the figures.
        run: The run's folder.
        total: Optimizer steps of the training.
        start: Optimizer steps that earlier attempts did.
        reported: The last of them whose figures are written.
        enabled: False on every process but the first.
    """

    def __init__(self, job: TrainJob, run: Path, *, total: int, start: int, reported: int, enabled: bool) -> None:
        self._total, self._start, self._enabled = total, start, enabled
        self._heartbeat = HeartbeatWriter(run, "train", unit="steps", total=total, enabled=enabled)
        self._metrics = MetricsWriter(job, run, start=reported, enabled=enabled)
        self._screen = Screen(total=total, start=start, enabled=enabled)
        self._pace = Pace(total, start)
        self._message = ""
        self._newest: Mapping[str, float] = {}

    def __enter__(self) -> Reporter:
        self._heartbeat.beat(self._start, force=True)
        with ExitStack() as stack:
            stack.enter_context(self._screen)
            stack.enter_context(self._metrics)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def advance(self, done: int) -> None:
        """Say that `done` optimizer steps are done."""
        eta = self._pace.eta(done)
        self._screen.advance(done, eta)
        self._heartbeat.beat(
            done,
            self._message,
            force=done == self._total,
            loss=self._newest.get("loss/audio"),
            tokens_per_second=self._newest.get("tokens_per_second"),
            eta=eta,
        )

    def flush(self) -> None:
        """Wait until the figures are on disk."""
        self._metrics.flush()

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Say the figures of optimizer step `step` (1-based), by name."""
        self._metrics.write(step, values)
        self._pace.mark(step)
        self._newest, self._message = values, line(values)
        if self._enabled:
            logger.info("step %d/%d  %s", step, self._total, line(values, self._pace.eta(step)))
            self._screen.show(self._message)

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        """Show a recording that was made after `step` optimizer steps."""
        self._metrics.speech(step, name, wav, caption)

    def stopped(self, done: int) -> None:
        """Say that the training stops here because it was asked to."""
        logger.info("stopped after step %d of %d, as asked", done, self._total)
        self._heartbeat.beat(done, "stopped, as asked", force=True)
