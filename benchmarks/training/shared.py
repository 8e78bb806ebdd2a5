"""A row in which samples with the same reference and the same text before it share that part."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import replace

import numpy as np
import torch

from higgsc.train.decoder.routes import Routes
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import Sequence


def share(sequences: Listing[Sequence], prefix: int) -> PackedBatch:
    """Pack samples whose first `prefix` positions are the same: once these, then the rest of each.

    Nothing in the shared part is labelled, so that every label stays.
    """
    apart = pack(sequences)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    starts = np.cumsum([0, *lengths[:-1]])
    kept = np.ones(apart.tokens, dtype=np.bool_)
    for start in starts[1:]:
        kept[start : start + prefix] = False
    place = torch.from_numpy(np.cumsum(kept) - 1)
    is_audio = np.concatenate([sequence.is_audio for sequence in sequences])
    rows = torch.from_numpy(kept[is_audio])
    where = torch.from_numpy(kept)
    audio_positions, text_positions = place[apart.audio_positions], place[apart.text_positions]
    segments = [prefix, *(length - prefix for length in lengths)]
    return replace(
        apart,
        input_ids=apart.input_ids[:, where],
        position_ids=apart.position_ids[:, where],
        audio_input_ids=apart.audio_input_ids[:, rows],
        audio_input_ids_mask=apart.audio_input_ids_mask[:, rows],
        audio_positions=audio_positions,
        text_positions=text_positions,
        routes=Routes.of(
            is_audio[kept],
            segments,
            [-1, *(0 for _ in sequences)],
            audio_labels=audio_positions.numpy(),
            text_labels=text_positions.numpy(),
        ),
    )
