"""What a tool does for a training, and what happens when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from higgsc.data.loading import first_line

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A tool that shows figures and speech by optimizer step (1-based; 0 is before the training)."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show figures by name."""

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        """Show a recording: a WAV file with 16-bit mono samples at 24 kHz."""

    def flush(self) -> None:
        """See to it that what was shown is not lost with the process, as far as the tool can."""

    def close(self) -> None:
        """End it."""


class Guarded:
    """A tracker whose failures do not end the training: the first is reported, the others are counted.

    Whoever looks at a tool that stopped has to learn why from the log; the figures are in `metrics.jsonl` all the same.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker, self._failed = name, tracker, 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.scalars(step, values))

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        self._try(lambda: self._tracker.speech(step, name, wav, caption))

    def flush(self) -> None:
        self._try(self._tracker.flush)

    def close(self) -> None:
        self._try(self._tracker.close)
        if self._failed:
            logger.warning("%s failed %d times; metrics.jsonl has all figures", self._name, self._failed)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            # Of whatever type: what libraries of trackers raise is none of a training's business.
            self._failed += 1
            if self._failed == 1:
                logger.warning(
                    "%s failed, training goes on without it: %s", self._name, first_line(error), exc_info=True
                )
