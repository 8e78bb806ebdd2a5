"""The arithmetic of one optimizer step: from rows to clipped gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from higgsc.contract.jobs import ContrastiveJob, LossJob, TrainJob
from higgsc.train.objective.contrastive import Voices, info_nce, pooled
from higgsc.train.objective.loss import LossModule, LossSums, objective
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.inputs import Counts, Row


class Gradients:
    """Computes the gradients of a training.

    Args:
        job: The job.
        mesh: The processes.
        module: The model with its loss, distributed over the processes.
        parameters: The trained ones, by their names in the model.
        autocast: Number format of the arithmetic, where it is not the parameters' own.
    """

    def __init__(
        self,
        job: TrainJob,
        mesh: Mesh,
        *,
        module: LossModule,
        parameters: Mapping[str, nn.Parameter],
        autocast: torch.dtype | None,
    ) -> None:
        self._job, self._mesh = job, mesh
        self._module, self._parameters, self._autocast = module, parameters, autocast

    def compute(
        self, rows: Iterable[Row], count: int, weights: LossJob, counts: Counts
    ) -> tuple[list[Tensor], list[LossSums], Tensor]:
        """Leave the step's gradients, clipped, in the parameters.

        Args:
            rows: This process's micro-batches of the step.
            count: How many they are.
            weights: Of the losses in this step.
            counts: Of the step's global batch.

        Returns:
            The rows' shares of the objective, their losses, and the gradient's norm over all processes before clipping.
        """
        mesh, losses, sums = self._mesh, [], []
        for number, row in enumerate(rows, start=1):
            compared = None if row.voices is None else row.voices.to(mesh.device)
            mesh.accumulate(self._module, last=number == count)
            with torch.autocast(mesh.device.type, self._autocast, enabled=self._autocast is not None):
                sums.append(self._module(row.batch.to(mesh.device), compared))
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
