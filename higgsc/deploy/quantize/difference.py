"""What quantising changes: losses and likeliest codes of the quantised model beside the unquantised one's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from higgsc.data.delay import IGNORE
from higgsc.data.store import Store
from higgsc.deploy.probe import hidden_states, random_probe
from higgsc.deploy.streamed import StreamedModel
from higgsc.deploy.weights import Weights
from higgsc.deploy.workers import workers
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

SAMPLES = 8
"""Samples of the store that are measured on, at most: the model passes over them once on the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Teacher-forced, on the same sequences, both models computed in float32."""

    measured_on: str
    """What the sequences were."""
    labels: int
    """Labelled codes."""
    audio_loss_before: float
    """Mean cross-entropy over the labelled codes without quantising, in nats."""
    audio_loss: float
    """The same with it."""
    text_loss_before: float
    text_loss: float
    codes_changed: float
    """Share of the labelled codes where another one is the likeliest."""

    @property
    def words(self) -> str:
        """For people, in a line."""
        return (
            f"audio loss {self.audio_loss_before:.4f} → {self.audio_loss:.4f}, text loss {self.text_loss_before:.4f} → "
            f"{self.text_loss:.4f}, {self.codes_changed:.1%} of the likeliest codes are others, on {self.measured_on}"
        )


def difference(
    config: Mapping[str, Any], before: Weights, after: Weights, *, store: Path | None, device: torch.device
) -> Difference:
    """Measure it on held-out samples of a store, else on training samples, else on a fixed random sequence.

    Neither model is in memory as a whole.

    Args:
        config: Of the model, without quantisation.
        before: Its weights.
        after: Its quantised weights, by the same names.
        store: The speech that it was trained on.
        device: Where to compute.

    Raises:
        StepError: The store cannot be read (65 or 66).
    """
    with workers() as pool:
        streamed = StreamedModel(before, config, device=device, pool=pool)
        batch, measured_on = _sequences(streamed.model.config, store)
        batch = batch.to(device)
        exact = _figures(streamed.model, batch)
        del streamed
        quantized = _figures(StreamedModel(after, config, device=device, pool=pool).model, batch)
    labelled = batch.audio_labels.cpu() != IGNORE
    return Difference(
        measured_on=measured_on,
        labels=int(labelled.sum()),
        audio_loss_before=exact[0],
        audio_loss=quantized[0],
        text_loss_before=exact[1],
        text_loss=quantized[1],
        codes_changed=float((exact[2] != quantized[2])[labelled].float().mean()),
    )


def _sequences(config: Any, store: Path | None) -> tuple[PackedBatch, str]:
    if store is None:
        return random_probe(config), "a sequence of random text and codes, without a store of speech"
    opened = Store.open(store)
    held_out = len(opened.validation) > 0
    chosen = (opened.validation if held_out else opened.train)[:SAMPLES]
    tokens = AudioTokens.of(config)
    row = pack([build_sequence(opened.sample(int(index)), tokens) for index in chosen])
    return row, f"{len(chosen)} {'held-out' if held_out else 'training'} samples"


@torch.inference_mode()
def _figures(model: Any, batch: PackedBatch) -> tuple[float, float, Tensor]:
    """Audio loss, text loss, and the likeliest codes `[P, 8]`, by transformers' own forward pass."""
    hidden = hidden_states(model.model, batch)
    labels = batch.audio_labels
    logits = model.audio_lm_head(hidden[batch.audio_positions]).reshape(*labels.shape, -1)
    audio = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    text = cross_entropy(model.text_lm_head(hidden[batch.text_positions]), batch.text_labels)
    return float(audio), float(text), logits.argmax(dim=-1).cpu()
