"""A Whisper as small as they come: random weights, windows of two seconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from higgsc.contract.jobs import WhisperRef
from higgsc.data.listener import Listener
from higgsc.data.whisper import WhisperEncoder

WIDTH = 16
WINDOW_SECONDS = 2


def make_whisper(folder: Path, seed: int = 0) -> WhisperRef:
    """Write one; its encoder's weights are random enough for two recordings to sound different to it."""
    config = WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=WIDTH, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, max_source_positions=50 * WINDOW_SECONDS,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = WhisperModel(config)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=WINDOW_SECONDS).save_pretrained(folder)
    return WhisperRef(encoder=str(folder), revision=None, width=WIDTH)


def load(ref: WhisperRef) -> WhisperEncoder:
    """Load it."""
    return WhisperEncoder.load(ref, root=Path.cwd(), device="cpu")


@cache
def some_listener() -> Listener:
    """Of a Whisper that is nowhere, for features that are made up."""
    return Listener(encoder="whisper", revision=None, width=WIDTH, fingerprint="0" * 64)


def some_features(seed: int, frames: int) -> np.ndarray:
    """Bits of bfloat16 `[frames, WIDTH]`."""
    values = torch.randn(frames, WIDTH, generator=torch.Generator().manual_seed(seed))
    bits: np.ndarray = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    return bits
