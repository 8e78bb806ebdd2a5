"""The arithmetic of one optimizer step: from samples to clipped gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from higgsc.contract.jobs import ContrastiveJob, LossJob, TrainJob
from higgsc.data.store import Store
from higgsc.train.objective.contrastive import Voices, count_anchors, info_nce, pooled, voices
from higgsc.train.objective.loss import LossModule, LossSums, objective
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.batches import Indices
from higgsc.train.rows.sequence import AudioTokens, label_counts


class Counts(NamedTuple):
    """What the losses of a global batch are divided by."""

    audio: int
    """Labelled codes."""
    text: int
    """Labelled text tokens."""
    anchors: int
    """Samples with a contrastive loss."""


class Gradients:
    """Computes the gradients of a training.

    Args:
        job: The job.
        mesh: The processes.
        store: The samples.
        module: The model with its loss, distributed over the processes.
        tokens: Ids of its checkpoint.
        parameters: The trained ones, by their names in the model.
        autocast: Number format of the arithmetic, where it is not the parameters' own.
    """

    def __init__(
        self,
        job: TrainJob,
        mesh: Mesh,
        store: Store,
        *,
        module: LossModule,
        tokens: AudioTokens,
        parameters: Mapping[str, nn.Parameter],
        autocast: torch.dtype | None,
    ) -> None:
        self._job, self._mesh, self._store = job, mesh, store
        self._module, self._tokens, self._parameters, self._autocast = module, tokens, parameters, autocast

    def counts(self, batch: Indices) -> Counts:
        """The counts of a global batch `[global_samples]`, worked out without talking to the other processes."""
        audio, text = (int(n.sum()) for n in label_counts(self._store.target_frames[batch]))
        anchors = 0
        if self._job.loss.contrastive is not None:
            anchors = count_anchors(self._store.speaker_numbers[batch.reshape(self._job.batch.accumulation, -1)])
        return Counts(audio, text, anchors)

    def compute(self, rows: Indices, weights: LossJob, counts: Counts) -> tuple[list[Tensor], list[LossSums], Tensor]:
        """Leave the step's gradients, clipped, in the parameters.

        Args:
            rows: This process's micro-batches of the step, `[rows, samples]`.
            weights: Of the losses in this step.
            counts: Of the step's global batch.

        Returns:
            The rows' shares of the objective, their losses, and the gradient's norm over all processes before clipping.
        """
        mesh, losses, sums = self._mesh, [], []
        for last, row in enumerate(rows, start=1 - len(rows)):
            batch = assemble(self._store, row, self._tokens)
            compared = None
            if self._job.loss.contrastive is not None:
                stored = [self._store.sample(int(index)) for index in row]
                compared = voices(stored, self._store.speaker_numbers[row]).to(mesh.device)
            mesh.accumulate(self._module, last=last == 0)
            with torch.autocast(mesh.device.type, self._autocast, enabled=self._autocast is not None):
                sums.append(self._module(batch.to(mesh.device), compared))
            loss = objective(
                sums[-1], weights, audio_labels=counts.audio, text_labels=counts.text, anchors=counts.anchors
            )
            mesh.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        mesh.reduce_gradients(self._parameters)
        return losses, sums, mesh.clip_gradients(self._parameters, self._job.optimizer.max_grad_norm)


class Comparison:
    """The contrastive loss of a row, summed over its samples; see `higgsc.train.objective.contrastive`."""

    def __init__(self, job: ContrastiveJob | None, mesh: Mesh) -> None:
        self._contrastive, self._mesh = job, mesh

    def __call__(self, hidden: Tensor, where: Voices) -> Tensor:
        """From the row's hidden states `[L, h]`; every process has to ask."""
        assert self._contrastive is not None, "a row comes with its voices only where they are compared"
        return info_nce(
            *pooled(hidden, where),
            where.speakers,
            temperature=self._contrastive.temperature,
            gather=self._mesh.gather_rows,
            first=self._mesh.data_rank * len(where.speakers),
        )
