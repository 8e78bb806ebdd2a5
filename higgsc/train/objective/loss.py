"""The training objective: cross-entropy of the target's codes and of the text tokens around it.

The heads run at labelled positions only. Over all positions, the released model's text head alone would cost
1.6 GFLOP per token and its logits gigabytes of memory, to be thrown away.

The module returns sums, not means. An optimizer step divides them once, by the label counts of the whole global
batch, so that every label weighs the same however the batch is split into micro-batches and processes:

    objective = w_audio * audio + w_text * sum(text CE) / text labels [+ w_contrastive * sum(contrastive) / anchors]
    audio     = sum over codebooks k of v_k * sum(CE of k) / labels of k

with codebook weights v that add up to 1. With equal weights, audio is the mean over all labelled codes (ln 1026 = 6.93
for a uniform guess), not the sum of the eight codebooks' means that transformers' own `forward` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from higgsc.contract.jobs import LossJob
from higgsc.train.decoder.heard import projector_of
from higgsc.train.decoder.layer import decode, install
from higgsc.train.decoder.lora import project
from higgsc.train.objective.contrastive import Voices
from higgsc.train.objective.cross_entropy import cross_entropy
from higgsc.train.rows.row import PackedBatch


class LossSums(NamedTuple):
    """Cross-entropy, in nats, summed over labels."""

    audio: Tensor
    """float32 `[8]`, one sum per codebook."""
    text: Tensor
    """float32 scalar."""
    contrastive: Tensor = torch.zeros(())
    """float32 scalar, over samples; 0 where the contrastive loss is off."""


class LossModule(nn.Module):
    """A Higgs Audio v2 model together with its loss.

    Args:
        model: `HiggsAudioV2ForConditionalGeneration` with its text head, or a PEFT model around one.
        compare: Contrastive loss of the hidden states `[L, h]` of a row; used where a row comes with its voices.
    """

    def __init__(self, model: nn.Module, compare: Callable[[Tensor, Voices], Tensor] | None = None) -> None:
        super().__init__()
        self.model = model
        install(self.causal.model)
        self._compare = compare

    @property
    def causal(self) -> Any:
        """The `HiggsAudioV2ForConditionalGeneration` inside."""
        unwrap = getattr(self.model, "get_base_model", None)
        return self.model if unwrap is None else unwrap()

    @property
    def listens(self) -> bool:
        """Whether the model takes what a Whisper has heard."""
        return projector_of(self.causal.model) is not None

    def forward(self, batch: PackedBatch, voices: Voices | None = None) -> LossSums:
        """Sums of the cross-entropy over a packed row's labels; zeros (with gradient) where it has none."""
        causal = self.causal
        ids = batch.input_ids, batch.position_ids, batch.audio_input_ids
        compared = voices is not None and self._compare is not None
        hidden = decode(causal.model, *ids, batch.routes, labelled=not compared, heard=batch.heard)
        labelled = batch.routes.labelled
        audio_places, text_places = (
            (batch.audio_positions, batch.text_positions)
            if compared
            else (labelled.by_audio_label, labelled.by_text_label)
        )

        codebooks = batch.audio_labels.shape[1]

        def losses(head: nn.Module, places: Tensor, labels: Tensor) -> Tensor:
            (logits,) = project(hidden.index_select(0, places), head)
            return cross_entropy(
                logits.view(labels.numel(), logits.shape[1] // labels.shape[1:].numel()), labels.flatten()
            )

        audio = losses(causal.audio_lm_head, audio_places, batch.audio_labels)
        text = losses(causal.text_lm_head, text_places, batch.text_labels).sum()
        contrastive = text.new_zeros(())
        if voices is not None and self._compare is not None:
            contrastive = self._compare(hidden, voices)
        return LossSums(audio=audio.reshape(-1, codebooks).sum(dim=0), text=text, contrastive=contrastive)

    def generate(self, **inputs: Any) -> Any:
        """The model's own `generate`. Here, because a sharded model has to be entered by its outermost module."""
        return self.causal.generate(**inputs)


def weighted(sums: LossSums, weights: LossJob) -> Tensor:
    """The sums with their weights, to be divided by what they count: audio, text, contrastive; float32 `[3]`.

    A codebook's labels are an eighth of the audio labels, hence the factor on its share.
    """
    # Python's own sums: a tensor of weights would have to be copied to the GPU, and waited for, at each micro-batch.
    total = sum(weights.codebooks) or 1.0
    share = [weights.audio * len(weights.codebooks) * weight / total for weight in weights.codebooks]
    parts = [factor * part for factor, part in zip(share, sums.audio.unbind(), strict=True)]
    contrastive = weights.contrastive.weight if weights.contrastive is not None else 0.0
    return torch.stack((torch.stack(parts).sum(), weights.text * sums.text, contrastive * sums.contrastive))


def objective(sums: LossSums, weights: LossJob, *, audio_labels: int, text_labels: int, anchors: int = 0) -> Tensor:
    """A micro-batch's share of the objective; the shares of a global batch add up to the objective.

    Args:
        sums: Cross-entropy of the micro-batch.
        weights: Weights of the losses, and of the codebooks in the audio loss.
        audio_labels: Labelled codes of the global batch, over all codebooks.
        text_labels: Labelled text tokens of the global batch.
        anchors: Samples of the global batch with a contrastive loss.
    """
    audio, text, contrastive = weighted(sums, weights).unbind()
    return audio / max(audio_labels, 1) + text / max(text_labels, 1) + contrastive / max(anchors, 1)
