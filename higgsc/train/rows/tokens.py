"""Batches by tokens: rows filled to a budget, so many of them an optimizer step.

The order is a pure function of the seed: every epoch's permutation is put into rows (`epochs.py`), and optimizer step
`b` takes rows `b * R` to `(b + 1) * R` of them, R being the global batch over the budget of a row. Every sample is in
exactly one row of an epoch. What a step trains on depends neither on the number of processes nor on where a run was
interrupted, but on the budget of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from higgsc.contract.jobs import BatchJob, LengthJob, OptimizerJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.rows.curriculum import LengthCurriculum
from higgsc.train.rows.epochs import EpochRows
from higgsc.train.rows.order import Indices, numbers_between
from higgsc.train.rows.packing import deal, fill_rows
from higgsc.train.rows.shared import Shared


class Packing(NamedTuple):
    """How well the rows of an epoch are filled."""

    rows: int
    tokens: int
    """Positions that are computed."""
    apart: int
    """Positions if no two samples shared anything."""
    fill: float
    """Share of the rows' room that is used."""


class TokenPlan:
    """The samples of every optimizer step, for every process.

    Args:
        batch: Sizes of batches.
        indices: The store's training samples, `[n]`.
        seed: Determines the order.
        world_size: Processes, or tensor groups of them.
        positions: Positions of each sample of the store by itself.
        shared: Which samples of the store share their beginning, if any do.
        cost: FLOPs of a token beside attention, and of a token's attention to one other.
        lengths: For a curriculum by length: how the longest sample grows, and the frames of each one's longer clip.

    Raises:
        StepError: If micro-batch, accumulation and processes do not make up the global batch.
    """

    def __init__(
        self,
        batch: BatchJob,
        indices: Indices,
        *,
        seed: int,
        world_size: int,
        positions: Indices,
        shared: Shared | None = None,
        cost: tuple[float, float] = (1.0, 0.0),
        lengths: tuple[LengthJob, Indices] | None = None,
    ) -> None:
        assert batch.micro_tokens is not None, "a job gives either samples or tokens"
        product = batch.micro_tokens * batch.accumulation * world_size
        if product != batch.global_tokens:
            raise StepError(
                f"micro_tokens({batch.micro_tokens}) * accumulation({batch.accumulation}) * "
                f"data-parallel ranks({world_size}) = {product} != global_tokens({batch.global_tokens})",
                code=ExitCode.USAGE,
                help="the job file was changed by hand; build the spec again",
            )
        self._indices, self._positions, self._seed = indices, positions, seed
        self._budget, self._rows, self._world_size = batch.micro_tokens, batch.accumulation * world_size, world_size
        self._cost = cost
        self.shared = shared
        self._epochs = self._epoch_rows(start=0)
        self._curriculum = None
        self._later: EpochRows | None = None
        if lengths is not None:
            self._curriculum = LengthCurriculum(
                *lengths, stream=lambda first, last: numbers_between(seed, len(indices), first, last),
                enough=self._enough, stretch=self._rows,
            )  # fmt: skip

    def total_steps(self, optimizer: OptimizerJob) -> int:
        """Optimizer steps of a training: as given, or as many as fit into the epochs' rows, at least one."""
        if optimizer.steps is not None:
            return optimizer.steps
        assert optimizer.epochs is not None, "a job gives either steps or epochs"
        whole = int(optimizer.epochs)
        part = optimizer.epochs - whole
        rows = self._epochs.before(whole) + (part * len(self._epochs.epoch(whole)) if part else 0)
        return max(1, int(rows / self._rows))

    def epochs(self, steps: int) -> float:
        """Epochs that the rows of so many steps are, as if no curriculum had passed over any sample."""
        epoch, row = self._epochs.place(steps * self._rows)
        return epoch + row / len(self._epochs.epoch(epoch))

    def global_batch(self, step: int) -> Indices:
        """Samples of optimizer step `step` (0-based) as indices into the store."""
        return np.concatenate(self.rows(step))

    def rows(self, step: int) -> list[Indices]:
        """The rows of a step, of all processes, each with its samples as indices into the store."""
        curriculum = self._curriculum
        if curriculum is None:
            return list(self._epochs.rows(step * self._rows, (step + 1) * self._rows))
        if step < curriculum.steps:
            samples = self._indices[curriculum.batch(step)]
            in_order = fill_rows(self._positions[samples].tolist(), self._budget, window=0)
            return [samples[in_order[row]] for row in range(len(in_order))]
        if self._later is None:
            self._later = self._epoch_rows(start=curriculum.end)
        first = (step - curriculum.steps) * self._rows
        return list(self._later.rows(first, first + self._rows))

    def spared(self, step: int) -> Indices:
        """Positions that each sample of a step shares with the one before it, and does not take a second time."""
        return np.concatenate([self._spared(row) for row in self.rows(step)])

    def micro_batches(self, step: int, rank: int) -> Sequence[Indices]:
        """The rows of process `rank` in a step: as dear in all, and one by one, as those of the others."""
        rows = self.rows(step)
        mine = deal(np.array([self.cost(row) for row in rows]), self._world_size)[rank]
        return [rows[number] for number in mine]

    def others(self, samples: Indices) -> Sequence[Indices]:
        """Rows of samples that are not trained on, which share nothing."""
        rows = fill_rows(self._positions[samples].tolist(), self._budget)
        return [samples[rows[row]] for row in range(len(rows))]

    def longest_row(self, steps: int) -> Indices:
        """The row with the most positions in the first `steps` steps; the first of several."""
        longest = self.rows(0)[0]
        for step in range(steps):
            if self.tokens(longest) == self._budget:
                break  # none is longer
            longest = max((longest, *self.rows(step)), key=self.tokens)
        return longest

    def tokens(self, row: Indices) -> int:
        """Positions of a row."""
        return int((self._positions[row] - self._spared(row)).sum())

    def cost(self, row: Indices) -> float:
        """FLOPs of a row, forward and backward, with an attention that computes what is visible."""
        spared = self._spared(row)
        own = self._positions[row] - spared
        seen = (own * own) / 2 + own * spared
        return float(self._cost[0] * own.sum() + self._cost[1] * seen.sum())

    def packing(self) -> Packing:
        """How the first epoch lies in rows."""
        epoch = self._epochs.epoch(0)
        apart = int(self._positions[self._indices].sum())
        tokens = apart - int(self._spared(epoch.order, starts=epoch.ends[:-1]).sum())
        return Packing(len(epoch), tokens, apart, tokens / (len(epoch) * self._budget))

    def describe(self) -> str:
        """How full rows are, and what sharing saves, for the log."""
        found = self.packing()
        text = f"{found.rows:,} rows of {self._budget:,} tokens an epoch, {found.fill:.2%} full"
        if found.tokens == found.apart:
            return text
        saved = 1 - found.tokens / found.apart
        return f"{text}; samples with the same reference share it, which saves {saved:.1%} of {found.apart:,} tokens"

    def _spared(self, row: Indices, starts: Sequence[int] | Indices = ()) -> Indices:
        """Positions that each sample of a row takes over from the one before; `starts` are where other rows begin."""
        if self.shared is None:
            return np.zeros(len(row), dtype=np.int64)
        follows = self.shared.follows(row)
        follows[np.asarray(starts, dtype=np.int64)] = False
        return np.where(follows, self.shared.prefixes[row], 0)

    def _epoch_rows(self, start: int) -> EpochRows:
        return EpochRows(self._indices, self._positions, self.shared, seed=self._seed, budget=self._budget, start=start)

    def _enough(self, numbers: Indices) -> int | None:
        """How many samples of a stretch fill a step's rows in order; None if they do not."""
        rows = fill_rows(self._positions[self._indices[numbers]].tolist(), self._budget, window=0)
        return int(rows.ends[self._rows - 1]) if len(rows) > self._rows else None
