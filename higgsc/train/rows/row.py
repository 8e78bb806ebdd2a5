"""A row for the model: several samples one after the other, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from higgsc.train.rows.sequence import Sequence as Sample

Ids = NDArray[np.int64]
_NARROW = ("input_ids", "audio_input_ids", "audio_labels", "text_labels")
ALONE = -1
"""In place of a segment's prefix: it has none."""


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
    audio_input_ids_mask: Tensor
    """bool `[1, M]`, all true: nothing is padded."""
    audio_positions: Tensor
    """int64 `[P]`, into L."""
    audio_labels: Tensor
    """int64 `[P, 8]`, codes or -100."""
    text_positions: Tensor
    """int64 `[Q]`, into L."""
    text_labels: Tensor
    """int64 `[Q]`."""
    lengths: Tensor
    """int32 `[S]`: positions of each segment."""
    boundaries: Tensor
    """int32 `[S + 1]`: 0 and where each segment ends, the `cu_seqlens` of attention kernels."""
    prefixes: Tensor
    """int32 `[S]`: the number of the segment that each one goes on from, or `ALONE`."""
    text_rows: Tensor
    """int64 `[L - M]`: positions of text, ascending."""
    audio_rows: Tensor
    """int64 `[M]`: positions of audio rows, ascending."""
    restore: Tensor
    """int64 `[L]`: where each position is in `text_rows` and `audio_rows` one after the other."""
    longest: int
    """Positions of the longest segment."""
    shares: bool
    """Whether any segment has a prefix."""

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

    def _each(self, change: Any) -> PackedBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def structure(lengths: Ids, prefixes: Ids, is_audio: NDArray[np.bool_]) -> dict[str, Any]:
    """The fields of a row that say how it is divided.

    Args:
        lengths: Positions of each segment, `[S]`.
        prefixes: The segment that each one goes on from, or `ALONE`, `[S]`.
        is_audio: Which positions are audio rows, `[L]`.
    """
    text, audio = np.flatnonzero(~is_audio), np.flatnonzero(is_audio)
    restore = np.empty(len(is_audio), dtype=np.int64)
    restore[text], restore[audio] = np.arange(len(text)), np.arange(len(text), len(is_audio))
    ends = np.cumsum(lengths)
    before = np.where(prefixes == ALONE, 0, lengths[prefixes])
    positions = np.arange(len(is_audio)) - np.repeat(ends - lengths - before, lengths)
    return {
        "position_ids": torch.from_numpy(positions)[None],
        "lengths": torch.from_numpy(lengths.astype(np.int32)),
        "boundaries": torch.from_numpy(np.r_[0, ends].astype(np.int32)),
        "prefixes": torch.from_numpy(prefixes.astype(np.int32)),
        "text_rows": torch.from_numpy(text),
        "audio_rows": torch.from_numpy(audio),
        "restore": torch.from_numpy(restore),
        "longest": int(lengths.max()),
        "shares": bool((prefixes != ALONE).any()),
    }


def visible(batch: PackedBatch) -> Tensor:
    """What each position of a row sees, bool `[1, 1, L, L]`, as attention masks are: true is seen."""
    segments = torch.arange(len(batch.lengths), device=batch.lengths.device)
    own = torch.repeat_interleave(segments, batch.lengths, output_size=batch.tokens)
    prefix = batch.prefixes[own]
    places = torch.arange(batch.tokens, device=own.device)
    causal = (own[:, None] == own) & (places[:, None] >= places)
    return (causal | (prefix[:, None] == own))[None, None]


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Put samples into one row, each a segment of its own.

    The loss and the gradients are those of the separate samples: with no attention mask and no cache, transformers
    derives a block-diagonal mask from position ids that start over (`masking_utils.py`,
    `find_packed_sequence_indices`).
    """
    lengths = np.array([len(sample.input_ids) for sample in samples])
    offsets = np.cumsum(lengths) - lengths
    placed = list(zip(samples, offsets, strict=True))

    def joined(parts: Iterator[Ids]) -> Tensor:
        return torch.from_numpy(np.concatenate(list(parts)))

    rows = joined(sample.audio_rows for sample in samples)
    is_audio = np.concatenate([sample.is_audio for sample in samples])
    return PackedBatch(
        input_ids=joined(sample.input_ids for sample in samples)[None],
        audio_input_ids=rows[None],
        audio_input_ids_mask=torch.ones((1, len(rows)), dtype=torch.bool),
        audio_positions=joined(sample.audio_positions + offset for sample, offset in placed),
        audio_labels=joined(sample.audio_labels for sample in samples),
        text_positions=joined(sample.text_positions + offset for sample, offset in placed),
        text_labels=joined(sample.text_labels for sample in samples),
        **structure(lengths, np.full(len(samples), ALONE), is_audio),
    )
