"""Which samples a step trains on, and how several of them become one row.

The order is a pure function of the seed: the stream of samples is the endless concatenation of the epochs'
permutations, and optimizer step `b` takes samples `b * G` to `(b + 1) * G` of it, G being the global batch. What a
step trains on therefore depends neither on the number of processes nor on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from higgsc.contract.jobs import BatchJob, LengthJob, OptimizerJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.decoder.routes import Routes
from higgsc.train.rows.curriculum import LengthCurriculum
from higgsc.train.rows.sequence import Sequence
from higgsc.train.seeds import Purpose, sequence

Indices = NDArray[np.int64]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, samples: int) -> Indices:
    """Permutation of `range(samples)` that an epoch visits, int64 `[samples]`.

    Sorts raw Philox output rather than calling `Generator.permutation`: numpy keeps the streams of its bit
    generators the same from version to version, but not what `Generator` makes of them (NEP 19).
    """
    keys = np.random.Philox(sequence(seed, Purpose.ORDER, epoch)).random_raw(samples)
    order: Indices = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False  # shared by all callers
    return order


def total_steps(optimizer: OptimizerJob, *, samples: int, global_samples: int) -> int:
    """Optimizer steps of a training: as given, or as many as fit into the epochs, at least one."""
    if optimizer.steps is not None:
        return optimizer.steps
    assert optimizer.epochs is not None, "a job gives either steps or epochs"
    return max(1, int(optimizer.epochs * samples / global_samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The samples of every optimizer step, for every process.

    Attributes:
        indices: The store's training samples, `[n]`.
        seed: Determines the order.
        global_samples: Samples of an optimizer step, over all processes.
        micro_samples: Samples that a process packs into one row.
        world_size: Processes, or tensor groups of them.
        curriculum: Which samples each step takes, where short ones come first.
    """

    indices: Indices
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
        lengths: tuple[LengthJob, Indices] | None = None,
    ) -> BatchPlan:
        """Plan a job's batches.

        Args:
            batch: Sizes of batches.
            indices: The store's training samples, `[n]`.
            seed: Determines the order.
            world_size: Processes that the samples are shared by.
            lengths: For a curriculum by length: how the longest sample grows, and the frames of each one's longer clip.

        Raises:
            StepError: If there is nothing to train on, or if micro-batch, accumulation and processes do not make
                up the global batch.
        """
        if len(indices) == 0:
            raise StepError("the store holds no training samples", help="see its rejected.jsonl for the reasons")
        product = batch.micro_samples * batch.accumulation * world_size
        if product != batch.global_samples:
            raise StepError(
                f"micro_samples({batch.micro_samples}) * accumulation({batch.accumulation}) * "
                f"data-parallel ranks({world_size}) = {product} != global_samples({batch.global_samples})",
                code=ExitCode.USAGE,
                help="start as many processes as the job was built for, or build the spec again",
            )
        plan = cls(
            indices=indices,
            seed=seed,
            global_samples=batch.global_samples,
            micro_samples=batch.micro_samples,
            world_size=world_size,
        )
        if lengths is None:
            return plan
        curriculum = LengthCurriculum(*lengths, global_samples=batch.global_samples, stream=plan._numbers)
        return replace(plan, curriculum=curriculum)

    def global_batch(self, step: int) -> Indices:
        """Samples of optimizer step `step` (0-based) as indices into the store, `[global_samples]`."""
        if self.curriculum is not None:
            numbers = self.curriculum.batch(step)
        else:
            numbers = self._numbers(step * self.global_samples, (step + 1) * self.global_samples)
        batch: Indices = self.indices[numbers]
        return batch

    def stream(self, first: int, last: int) -> Indices:
        """A part of the endless stream of samples as indices into the store, `[last - first]`."""
        if self.curriculum is None:
            part: Indices = self.indices[self._numbers(first, last)]
            return part
        steps = range(first // self.global_samples, (last - 1) // self.global_samples + 1)
        skipped = steps.start * self.global_samples
        return np.concatenate([self.global_batch(step) for step in steps])[first - skipped : last - skipped]

    def _numbers(self, first: int, last: int) -> Indices:
        """Positions `first` to `last` of the epochs' permutations, one after the other, as numbers into `indices`."""
        samples = len(self.indices)
        epochs = range(first // samples, (last - 1) // samples + 1)
        stream = np.concatenate([epoch_order(self.seed, epoch, samples) for epoch in epochs])
        skipped = epochs.start * samples
        return stream[first - skipped : last - skipped]

    def micro_batches(self, step: int, rank: int) -> Indices:
        """The share of process `rank` in a step, `[accumulation, micro_samples]`."""
        batch = self.global_batch(step).reshape(-1, self.world_size, self.micro_samples)
        return batch[:, rank]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Sequences one after the other in a single row: L positions, M audio rows, P and Q labelled positions."""

    input_ids: torch.Tensor
    """int64 `[1, L]`."""
    position_ids: torch.Tensor
    """int64 `[1, L]`, from 0 again at each sequence."""
    audio_input_ids: torch.Tensor
    """int64 `[1, M, 8]`."""
    audio_input_ids_mask: torch.Tensor
    """bool `[1, M]`, all true: nothing is padded. Only transformers' own forward pass asks for it."""
    routes: Routes
    """Which positions are audio rows, and which ones see each other."""
    audio_positions: torch.Tensor
    """int64 `[P]`, into L."""
    audio_labels: torch.Tensor
    """int64 `[P, 8]`, codes or -100."""
    text_positions: torch.Tensor
    """int64 `[Q]`, into L."""
    text_labels: torch.Tensor
    """int64 `[Q]`."""

    @property
    def tokens(self) -> int:
        """Positions of the row, text and audio."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> PackedBatch:
        """Copy to a device; to a GPU from pinned memory, without waiting for the copy."""
        if device.type == "cpu":
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "routes"}
        moved = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved, routes=self.routes.to(device))


def pack(sequences: Listing[Sequence]) -> PackedBatch:
    """Put sequences into one row, without padding.

    The loss and the gradients are those of the separate sequences: positions start over, and attention stays within
    each of them.
    """
    offsets = np.cumsum([0, *(len(sequence.input_ids) for sequence in sequences)])

    def joined(parts: Iterator[NDArray[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(list(parts)))

    rows = joined(s.audio_rows for s in sequences)
    audio_positions = joined(s.audio_positions + o for s, o in zip(sequences, offsets, strict=False))
    text_positions = joined(s.text_positions + o for s, o in zip(sequences, offsets, strict=False))
    is_audio = np.concatenate([sequence.is_audio for sequence in sequences])
    return PackedBatch(
        input_ids=joined(s.input_ids for s in sequences)[None],
        position_ids=joined(np.arange(len(s.input_ids)) for s in sequences)[None],
        audio_input_ids=rows[None],
        audio_input_ids_mask=torch.ones((1, len(rows)), dtype=torch.bool),
        routes=Routes.of(
            is_audio,
            [len(sequence.input_ids) for sequence in sequences],
            audio_labels=audio_positions.numpy(),
            text_labels=text_positions.numpy(),
        ),
        audio_positions=audio_positions,
        audio_labels=joined(s.audio_labels for s in sequences),
        text_positions=text_positions,
        text_labels=joined(s.text_labels for s in sequences),
    )
