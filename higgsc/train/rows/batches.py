"""Batches by samples: which ones a step trains on.

The order is a pure function of the seed: the stream of samples is the endless concatenation of the epochs'
permutations, and optimizer step `b` takes samples `b * G` to `(b + 1) * G` of it, G being the global batch. What a
step trains on therefore depends neither on the number of processes nor on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from higgsc.contract.jobs import BatchJob, LengthJob, OptimizerJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.rows.curriculum import LengthCurriculum
from higgsc.train.rows.order import Indices, numbers_between

_SAMPLES_AT_A_TIME = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The samples of every optimizer step, for every process, in batches of so many samples.

    Attributes:
        indices: The store's training samples, `[n]`.
        positions: Positions of each sample of the store.
        seed: Determines the order.
        global_samples: Samples of an optimizer step, over all processes.
        micro_samples: Samples that a process packs into one row.
        world_size: Processes, or tensor groups of them.
        curriculum: Which samples each step takes, where short ones come first.
    """

    indices: Indices
    positions: Indices
    seed: int
    global_samples: int
    micro_samples: int
    world_size: int
    curriculum: LengthCurriculum | None = None

    @classmethod
    def of(
        cls,
        batch: BatchJob,
        indices: Indices,
        *,
        seed: int,
        world_size: int,
        positions: Indices,
        lengths: tuple[LengthJob, Indices] | None = None,
    ) -> BatchPlan:
        """Plan a job's batches.

        Args:
            batch: Sizes of batches.
            indices: The store's training samples, `[n]`.
            seed: Determines the order.
            world_size: Processes that the samples are shared by.
            positions: Positions of each sample of the store.
            lengths: For a curriculum by length: how the longest sample grows, and the frames of each one's longer clip.

        Raises:
            StepError: If micro-batch, accumulation and processes do not make up the global batch.
        """
        size, micro = batch.global_samples, batch.micro_samples
        assert size is not None, "a job gives either samples or tokens"
        assert micro is not None, "a job gives either samples or tokens"
        product = micro * batch.accumulation * world_size
        if product != size:
            raise StepError(
                f"micro_samples({micro}) * accumulation({batch.accumulation}) * "
                f"data-parallel ranks({world_size}) = {product} != global_samples({size})",
                code=ExitCode.USAGE,
                help="the job file was changed by hand; build the spec again",
            )
        curriculum = None
        if lengths is not None:
            curriculum = LengthCurriculum(
                *lengths,
                stream=lambda first, last: numbers_between(seed, len(indices), first, last),
                enough=lambda numbers: size if len(numbers) >= size else None,
                stretch=size,
            )
        return cls(
            indices=indices,
            positions=positions,
            seed=seed,
            global_samples=size,
            micro_samples=micro,
            world_size=world_size,
            curriculum=curriculum,
        )

    @property
    def shared(self) -> None:
        """Samples of a row share nothing: who counts samples wants those of the order."""
        return None

    def total_steps(self, optimizer: OptimizerJob) -> int:
        """Optimizer steps of a training: as given, or as many as fit into the epochs, at least one."""
        if optimizer.steps is not None:
            return optimizer.steps
        assert optimizer.epochs is not None, "a job gives either steps or epochs"
        return max(1, int(optimizer.epochs * len(self.indices) / self.global_samples))

    def epochs(self, steps: int) -> float:
        """How often the samples have been visited after so many steps."""
        return steps * self.global_samples / len(self.indices)

    def global_batch(self, step: int) -> Indices:
        """Samples of optimizer step `step` (0-based) as indices into the store, `[global_samples]`."""
        return self._batches(step, step + 1)

    def spared(self, step: int) -> Indices:
        """Positions that each sample of a step shares with the one before it: none."""
        return np.zeros(self.global_samples, dtype=np.int64)

    def micro_batches(self, step: int, rank: int) -> Sequence[Indices]:
        """The rows of process `rank` in a step, each with its samples."""
        batch = self.global_batch(step).reshape(-1, self.world_size, self.micro_samples)
        return list(batch[:, rank])

    def others(self, samples: Indices) -> Sequence[Indices]:
        """Rows of samples that are not trained on."""
        return np.split(samples, range(self.micro_samples, len(samples), self.micro_samples))

    def describe(self) -> None:
        """What the log says about rows: nothing."""
        return

    def longest_row(self, steps: int) -> Indices:
        """The row with the most positions in the first `steps` steps; the first of several."""
        at_a_time = max(1, _SAMPLES_AT_A_TIME // self.global_samples)
        longest, most = self.micro_batches(0, 0)[0], -1
        for first in range(0, steps, at_a_time):
            rows = self._batches(first, min(first + at_a_time, steps)).reshape(-1, self.micro_samples)
            totals = self.positions[rows].sum(axis=1)
            number = int(totals.argmax())
            if totals[number] > most:
                longest, most = rows[number], int(totals[number])
        return longest

    def _batches(self, first: int, last: int) -> Indices:
        """Samples of the steps `first` to `last`, one after the other."""
        early: list[Indices] = []
        start = 0
        if self.curriculum is not None:
            early = [self.curriculum.batch(step) for step in range(first, min(last, self.curriculum.steps))]
            first, last = (max(0, step - self.curriculum.steps) for step in (first, last))
            start = self.curriculum.end if last else 0
        if last > first:
            size = self.global_samples
            early.append(numbers_between(self.seed, len(self.indices), start + first * size, start + last * size))
        batches: Indices = self.indices[np.concatenate(early)]
        return batches
