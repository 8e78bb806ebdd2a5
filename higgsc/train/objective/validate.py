"""Teacher-forced losses over held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from higgsc.catalog.codec import CODEBOOKS
from higgsc.contract.jobs import LossJob
from higgsc.data.store import Store
from higgsc.train.checkpoints.checkpoint import VALIDATION_METRIC
from higgsc.train.objective.loss import LossModule, LossSums, weighted
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.sequence import AudioTokens, label_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationLosses:
    """Mean cross-entropy over the labels of a set of samples, in nats."""

    audio: float
    """Over all labelled codes."""
    text: float
    """Over the labelled text tokens."""
    audio_codebooks: tuple[float, ...]
    """The audio loss of each codebook; their mean is `audio`."""

    def figures(self, weights: LossJob) -> dict[str, float]:
        """`validation/...` by name; the total with the given weights, the parts without any."""
        exact = torch.float64
        sums = LossSums(
            audio=torch.tensor(self.audio_codebooks, dtype=exact) / CODEBOOKS, text=torch.tensor(self.text, dtype=exact)
        )
        return {
            VALIDATION_METRIC: self.audio,
            "validation/text_loss": self.text,
            "validation/total_loss": float(weighted(sums, weights).sum()),
            **{f"validation/audio_codebook_{k}": loss for k, loss in enumerate(self.audio_codebooks)},
        }


@torch.no_grad()
def validation_losses(
    module: LossModule,
    store: Store,
    rows: Sequence[NDArray[np.int64]],
    *,
    mesh: Mesh,
    autocast: torch.dtype | None = None,
    before_row: Callable[[int], None] = lambda number: None,
) -> ValidationLosses:
    """Mean losses over samples of a store; every process has to ask, and gets the same.

    Args:
        module: The model with its loss; its mode (training, evaluation) is put back afterwards.
        store: Where the samples lie.
        rows: Samples, at least one, in the rows that they are put into.
        mesh: The processes that share the work.
        autocast: Compute dtype of the forward pass, or None to use the parameters' own.
        before_row: Called with the number of a row before each, on all processes alike; may raise to end it here.
    """
    tokens = AudioTokens.of(module.causal.config)
    sums = torch.zeros(CODEBOOKS + 1, dtype=torch.float64, device=mesh.device)
    was_training = module.training
    module.eval()
    try:
        for number, first in enumerate(range(0, len(rows), mesh.data_size)):
            before_row(number)
            # Sharded processes have to run forward together: one that has no row left repeats the last, uncounted.
            mine = min(first + mesh.data_rank, len(rows) - 1)
            batch = assemble(store, rows[mine], tokens, heard=module.listens)
            with torch.autocast(mesh.device.type, autocast, enabled=autocast is not None):
                row_sums = module(batch.to(mesh.device))
            if mine == first + mesh.data_rank:
                sums += torch.cat((row_sums.audio, row_sums.text[None]))
    finally:
        module.train(was_training)

    *audio, text = mesh.sum(sums).tolist()
    audio_labels, text_labels = (
        int(np.sum(counts)) for counts in label_counts(store.target_frames[np.concatenate(rows)])
    )
    codebooks = tuple(value / (audio_labels // CODEBOOKS) for value in audio)
    return ValidationLosses(audio=sum(codebooks) / CODEBOOKS, text=text / text_labels, audio_codebooks=codebooks)
