"""What two models are compared on: a sequence of random text and codes, and transformers' own forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from higgsc.catalog.codec import CODEBOOK_ENTRIES, CODEBOOKS, FRAMES_PER_SECOND
from higgsc.data.store import StoredSample
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence


def random_probe(config: Any) -> PackedBatch:
    """A sequence in the training layout: random text below the special ids, random codes, a second of each clip.

    Args:
        config: Of the model, which has the ids; the same one always gives the same sequence.
    """
    random = np.random.default_rng(0)
    first_special = min(config.audio_token_id, config.audio_delay_token_id, config.audio_bos_token_id)

    def text(length: int) -> Any:
        return random.integers(0, first_special, length)

    def codes() -> Any:
        return random.integers(0, CODEBOOK_ENTRIES, (FRAMES_PER_SECOND, CODEBOOKS)).astype(np.uint16)

    sample = StoredSample(
        prefix=text(24), middle=text(24), suffix=text(2), reference=codes(), target=codes(), id="probe", speaker=""
    )
    return pack([build_sequence(sample, AudioTokens.of(config))])


def hidden_states(decoder: Any, batch: PackedBatch) -> torch.Tensor:
    """Hidden states `[L, H]` of a packed row, by transformers' own forward pass.

    No mask and no cache: either one would switch off the block-diagonal mask that it makes of position ids that start
    over.

    Args:
        decoder: The `model` of a `HiggsAudioV2ForConditionalGeneration`.
        batch: On the decoder's device.
    """
    return decoder(  # type: ignore[no-any-return]
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        audio_input_ids=batch.audio_input_ids,
        audio_input_ids_mask=torch.ones(
            batch.audio_input_ids.shape[:2], dtype=torch.bool, device=batch.input_ids.device
        ),
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state[0]
