"""What an optimizer step takes from the host: its samples, its rows, and what its losses are divided by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import StepError
from higgsc.data.loading import first_line
from higgsc.data.store import Store
from higgsc.train.objective.contrastive import Voices, count_anchors, voices
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.order import Indices
from higgsc.train.rows.plan import Plan
from higgsc.train.rows.row import PackedBatch
from higgsc.train.rows.sequence import AudioTokens, label_counts


class Counts(NamedTuple):
    """What the losses of a global batch are divided by."""

    audio: int
    """Labelled codes."""
    text: int
    """Labelled text tokens."""
    anchors: int
    """Samples with a contrastive loss."""


class Row(NamedTuple):
    """One micro-batch of this process."""

    batch: PackedBatch
    voices: Voices | None
    """Where its voices are, if they are compared."""


class StepInput(NamedTuple):
    """A step, without its rows' tensors."""

    number: int
    """Of the batch, 0-based."""
    samples: Indices
    """Of the global batch."""
    spared: Indices
    """Positions that each of them shares with the one before it."""
    rows: Sequence[Indices]
    """Of this process."""
    counts: Counts


class Inputs:
    """Makes them, on the host alone.

    Args:
        job: The job.
        store: The samples.
        plan: Which ones a step trains on.
        tokens: Ids of the checkpoint.
        rank: This process's share of the data.
        device: Where the rows go; for a GPU they are made in pinned memory.
    """

    def __init__(
        self, job: TrainJob, store: Store, plan: Plan, *, tokens: AudioTokens, rank: int, device: torch.device
    ) -> None:
        self._job, self._store, self._plan = job, store, plan
        self._tokens, self._rank, self._device = tokens, rank, device
        self._listens = job.model.whisper is not None

    def use_device(self) -> None:
        """Have this thread pin memory for its own GPU; a new thread would take the first one."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def counts(self, samples: Indices) -> Counts:
        """The counts of a global batch, worked out without talking to the other processes."""
        audio, text = (int(n.sum()) for n in label_counts(self._store.target_frames[samples]))
        anchors = 0
        if self._job.loss.contrastive is not None:
            anchors = count_anchors(self._store.speaker_numbers[samples.reshape(self._job.batch.accumulation, -1)])
        return Counts(audio, text, anchors)

    def step(self, number: int) -> StepInput:
        """The step of a batch (0-based)."""
        samples = self._plan.global_batch(number)
        rows = self._plan.micro_batches(number, self._rank)
        return StepInput(number, samples, self._plan.spared(number), rows, self.counts(samples))

    def row(self, samples: Indices) -> Row:
        """A row of these samples.

        Raises:
            StepError: If a sample cannot be read, with its name.
        """
        try:
            batch = assemble(self._store, samples, self._tokens, self._plan.shared, heard=self._listens)
        except StepError:
            raise
        except Exception as error:
            raise self._named(samples, error) from error
        compared = None
        if self._job.loss.contrastive is not None:
            stored = [self._store.sample(int(index)) for index in samples]
            compared = voices(stored, self._store.speaker_numbers[samples])
        return Row(batch.pinned() if self._device.type == "cuda" else batch, compared)

    def _named(self, samples: Indices, error: Exception) -> StepError:
        """The error with the names of the samples that it comes of; all of the row's if none does it alone."""

        def fails(sample: int) -> bool:
            try:
                assemble(self._store, np.array([sample]), self._tokens, heard=self._listens)
            except Exception:  # noqa: BLE001  # asked is whether, not how
                return True
            return False

        guilty = [sample for sample in samples.tolist() if fails(sample)] or samples.tolist()
        names = ", ".join(str(self._store.record(sample)["id"]) for sample in guilty)
        return StepError(
            f"cannot make a row of sample{'s' if len(guilty) > 1 else ''} {names}: {first_line(error)}",
            path=self._store.path,
            help="the store may have changed since it was prepared; run the prepare step again",
        )
