"""Going back to a checkpoint when a training has gone wrong, and giving up when that does not help (see `guard.py`)."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from higgsc.contract.outcome import StepError
from higgsc.train.checkpoints.checkpoint import checkpoint_path
from higgsc.train.checkpoints.shelf import find_newest_regular, remove_later
from higgsc.train.faults.guard import ROLLBACKS, SKIPPED_FILE, WINDOW, NotFiniteError
from higgsc.train.parallel.mesh import Mesh

logger = logging.getLogger(__name__)

_NAMED = 8  # ids in a message; the file has them all


class Rollbacks:
    """Where a training goes back to, how often it did, and which batches it has left out.

    Args:
        checkpoints: Their folder.
        run: The run's folder.
        mesh: The processes, which all ask and go back together.
        total: Optimizer steps of the training.
    """

    def __init__(self, checkpoints: Path, run: Path, mesh: Mesh, *, total: int) -> None:
        self._checkpoints, self._run, self._mesh, self._total = checkpoints, run, mesh, total
        self._suspects: list[str] = []
        self.steps: tuple[int, ...] = ()
        """Optimizer steps from which the training went back."""
        self.left_out = 0
        """Batches left out by all returns."""

    def load(self, steps: tuple[int, ...], left_out: int) -> None:
        """Take over from a checkpoint."""
        self.steps, self.left_out = steps, left_out

    def suspect(self, ids: list[str]) -> None:
        """Remember the samples of a skipped step, the newest first."""
        self._suspects = list(dict.fromkeys([*ids, *self._suspects]))

    def roll_back(self, error: NotFiniteError, *, skipped: Collection[int]) -> Path:
        """The checkpoint to go back to; every process has to ask.

        Args:
            error: Why.
            skipped: The optimizer steps that did not count.

        Raises:
            StepError: If there is none, or if going back has not helped before.
        """
        step = self._mesh.on_first(lambda: self._target(error, skipped))
        self.left_out += error.step - step
        self.steps = (*self.steps, error.step)
        if self._mesh.is_first:
            logger.warning(
                "%s; going back to step-%d, and on without the batches of steps %d to %d",
                error, step, step + 1, error.step,
            )  # fmt: skip
        return checkpoint_path(self._checkpoints, step)

    def _target(self, error: NotFiniteError, skipped: Collection[int]) -> int:
        if sum(error.step - step < WINDOW for step in self.steps) >= ROLLBACKS:
            raise self._given_up(error, f"going back to a checkpoint {ROLLBACKS} times did not help")
        # One that is followed by skipped steps alone holds what made them go wrong.
        counted = max((step for step in range(1, error.step + 1) if step not in skipped), default=0)
        checkpoint = find_newest_regular(self._checkpoints, before=counted)
        if checkpoint is None:
            older = "older " if self.steps else ""
            raise self._given_up(error, f"there is no {older}checkpoint to go back to")
        # An interrupted one of the way that led here would be taken for the newest by the next attempt.
        remove_later(self._checkpoints, checkpoint.step)
        return checkpoint.step

    def _given_up(self, error: NotFiniteError, why: str) -> StepError:
        named = ", ".join(self._suspects[:_NAMED])
        samples = f"look at the samples of the skipped steps ({named}; all of them: {self._run / SKIPPED_FILE}), "
        return StepError(
            f"{error.what} is not finite at step {error.step} of {self._total}, and {why}; nothing of it was saved",
            help=(samples if named else "") + "lower `training.learning_rate`, lengthen `training.warmup_steps`, "
            "or train with `precision: fp32`",
        )
