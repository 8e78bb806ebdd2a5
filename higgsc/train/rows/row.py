"""A row for the model: several samples one after the other, without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgsc.train.decoder.heard import Heard
from higgsc.train.decoder.routes import ALONE, Routes
from higgsc.train.rows.sequence import Sequence as Sample

Ids = NDArray[np.int64]
_NARROW = ("input_ids", "audio_input_ids", "audio_labels", "text_labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Samples one after the other in a single row: L positions in S segments, M of them audio rows, P and Q labelled.

    A segment is a sample, or what several samples begin with, or what one of those goes on with. A position sees its
    own segment up to itself, and all of the segment's prefix. Until the row is moved to a device, ids and codes may be
    of a narrower type, which is quicker to make and to move.
    """

    input_ids: Tensor
    """int64 `[1, L]`."""
    position_ids: Tensor
    """int64 `[1, L]`: from 0 again at each segment, or from its prefix's length."""
    audio_input_ids: Tensor
    """int64 `[1, M, 8]`."""
    routes: Routes
    """Which positions are audio rows, and which ones see each other."""
    audio_positions: Tensor
    """int64 `[P]`, into L."""
    audio_labels: Tensor
    """int64 `[P, 8]`, codes or -100."""
    text_positions: Tensor
    """int64 `[Q]`, into L."""
    text_labels: Tensor
    """int64 `[Q]`."""
    heard: Heard | None = None
    """What a Whisper heard of the references, where a model listens."""

    @property
    def tokens(self) -> int:
        """Positions of the row, text and audio."""
        return self.input_ids.shape[1]

    def pinned(self) -> PackedBatch:
        """In memory that a GPU copies from without waiting."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> PackedBatch:
        """Copy to a device, where ids and codes become int64; to a GPU without waiting, where the memory is pinned."""
        moved = self if device.type == "cpu" else self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, **{name: getattr(moved, name).long() for name in _NARROW})

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        changed: PackedBatch = _each_of(self, change)
        return changed


def _each_of(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass with its tensors changed, and those of the dataclasses in it."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    inner = {name: _each_of(value, change) for name, value in values.items() if is_dataclass(value)}
    return replace(part, **changed, **inner)


def structure(
    lengths: Ids, prefixes: Ids, is_audio: NDArray[np.bool_], *, audio_labels: Ids, text_labels: Ids
) -> dict[str, Any]:
    """The fields of a row that say how it is divided.

    Args:
        lengths: Positions of each segment, `[S]`.
        prefixes: The segment that each one goes on from, or `ALONE`, `[S]`.
        is_audio: Which positions are audio rows, `[L]`.
        audio_labels: Positions whose outputs have an audio label, `[P]`.
        text_labels: Those that have a text label, `[Q]`.
    """
    before = np.where(prefixes == ALONE, 0, lengths[prefixes])
    positions = np.arange(len(is_audio)) - np.repeat(np.cumsum(lengths) - lengths - before, lengths)
    return {
        "position_ids": torch.from_numpy(positions)[None],
        "audio_positions": torch.from_numpy(audio_labels),
        "text_positions": torch.from_numpy(text_labels),
        "routes": Routes.of(is_audio, lengths, prefixes, audio_labels=audio_labels, text_labels=text_labels),
    }


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Put samples into one row, each a segment of its own.

    The loss and the gradients are those of the separate samples: positions start over, and attention stays within each.
    """
    lengths = np.array([len(sample.input_ids) for sample in samples])
    placed = list(zip(samples, np.cumsum(lengths) - lengths, strict=True))

    def joined(parts: Iterator[Ids]) -> Ids:
        return np.concatenate(list(parts))

    rows = torch.from_numpy(joined(sample.audio_rows for sample in samples))
    return PackedBatch(
        input_ids=torch.from_numpy(joined(sample.input_ids for sample in samples))[None],
        audio_input_ids=rows[None],
        audio_labels=torch.from_numpy(joined(sample.audio_labels for sample in samples)),
        text_labels=torch.from_numpy(joined(sample.text_labels for sample in samples)),
        heard=_heard(placed),
        **structure(
            lengths,
            np.full(len(samples), ALONE),
            np.concatenate([sample.is_audio for sample in samples]),
            audio_labels=joined(sample.audio_positions + offset for sample, offset in placed),
            text_labels=joined(sample.text_positions + offset for sample, offset in placed),
        ),
    )


def _heard(placed: Sequence[tuple[Sample, int]]) -> Heard | None:
    """What was heard of all samples, each at its place in the row; all of them, or none."""
    heard = [sample.heard for sample, _ in placed if sample.heard is not None]
    if not heard:
        return None
    assert len(heard) == len(placed), "the samples of a row are of one store"
    return Heard.of(
        np.concatenate(heard), np.concatenate([sample.heard_positions + offset for sample, offset in placed])
    )
