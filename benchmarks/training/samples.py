"""Voice-cloning samples with random content and realistic lengths, and models with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape
from higgsc.catalog.setup import Sample
from higgsc.data.store import StoredSample

TEXT_TOKENS_PER_SECOND = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model and the adapter on it."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    codebook: int
    rank: int

    @property
    def catalog(self) -> HiggsAudioV2Shape:
        """The same sizes as the compiler's catalog has them."""
        return HiggsAudioV2Shape(
            hidden_size=self.hidden, intermediate_size=self.inner, layers=self.layers, attention_heads=self.heads,
            key_value_heads=self.key_value_heads, head_dim=self.head_dim, vocab_size=self.vocabulary, codebooks=8,
            codebook_size=self.codebook,
        )  # fmt: skip

    def config(self) -> HiggsAudioV2Config:
        """The configuration, with special ids at the end of the vocabulary."""
        last = self.vocabulary - 8
        return HiggsAudioV2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=self.head_dim,
            num_codebooks=8,
            codebook_size=self.codebook,
            audio_token_id=last,
            audio_delay_token_id=last + 1,
            audio_bos_token_id=last + 2,
            eos_token_id=last + 3,
            pad_token_id=last + 4,
            bos_token_id=last + 5,
            audio_stream_bos_id=self.codebook - 2,
            audio_stream_eos_id=self.codebook - 1,
            max_position_embeddings=4096,
        )

    def model(self, *, device: torch.device, dtype: torch.dtype) -> HiggsAudioV2ForConditionalGeneration:
        """Random weights, the same every time."""
        torch.manual_seed(0)
        config = self.config()
        config._attn_implementation = "sdpa"
        with device:
            default = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
            finally:
                torch.set_default_dtype(default)
        return model.eval()


SHAPES = {
    # The released model.
    "3B": Shape(
        hidden=3072, inner=8192, layers=28, heads=24, key_value_heads=8, head_dim=128,
        vocabulary=128256, codebook=1026, rank=64,
    ),
    # Its proportions at a size for two CPU cores: inner / hidden 2.67, heads : key-value heads 3, rank / hidden 1/48,
    # and the share of the two output heads in the arithmetic of a token (13.9 % and 0.9 %).
    "small": Shape(
        hidden=576, inner=1536, layers=8, heads=9, key_value_heads=3, head_dim=64,
        vocabulary=6848, codebook=66, rank=12,
    ),
    # For tests of the scripts: nothing measured on it means anything.
    "tiny": Shape(
        hidden=64, inner=128, layers=2, heads=2, key_value_heads=1, head_dim=32,
        vocabulary=256, codebook=66, rank=4,
    ),
}  # fmt: skip


def samples(
    shape: Shape,
    count: int,
    *,
    per_reference: int = 1,
    median: float = 5.5,
    learnable: bool = False,
    seed: int = 0,
) -> list[StoredSample]:
    """Samples of two clips of log-normal length and the text around them; about 480 tokens if nothing else is said.

    Args:
        shape: Says which ids there are.
        count: Samples.
        per_reference: Consecutive samples that share a reference and the text before it.
        median: Of the clips' seconds; none is shorter than 1.
        learnable: Whether the codes follow a rule, so that they can be learned; they are random otherwise.
        seed: Determines them.
    """
    rng = np.random.default_rng(seed)
    make = _regular_codes if learnable else _random_codes
    made: list[StoredSample] = []
    reference = prefix = None
    for number in range(count):
        if number % per_reference == 0:
            seconds = _seconds(rng, median)
            reference = make(rng, shape, round(25 * seconds))
            prefix = _text(rng, shape, 20 + seconds * TEXT_TOKENS_PER_SECOND)
        assert reference is not None
        assert prefix is not None
        seconds = _seconds(rng, median)
        made.append(
            StoredSample(
                id=str(number),
                speaker=str(number // per_reference),
                prefix=prefix,
                middle=_text(rng, shape, 8 + seconds * TEXT_TOKENS_PER_SECOND),
                suffix=_text(rng, shape, 2),
                reference=reference,
                target=make(rng, shape, round(25 * seconds)),
            )
        )
    return made


def equal_samples(shape: Shape, lengths: Sample, count: int) -> list[StoredSample]:
    """Samples of random content that all have the same lengths."""
    rng = np.random.default_rng(0)
    middle, suffix = 3, 2
    return [
        StoredSample(
            id=str(number),
            speaker="a",
            prefix=_text(rng, shape, lengths.text - middle - suffix),
            middle=_text(rng, shape, middle),
            suffix=_text(rng, shape, suffix),
            reference=_random_codes(rng, shape, lengths.reference),
            target=_random_codes(rng, shape, lengths.target),
        )
        for number in range(count)
    ]


def _seconds(rng: np.random.Generator, median: float) -> float:
    return float(np.clip(rng.lognormal(np.log(median), 0.5), 1, 20))


def _random_codes(rng: np.random.Generator, shape: Shape, frames: int) -> np.ndarray:
    return rng.integers(0, shape.codebook - 2, (frames, 8)).astype(np.uint16)


def _regular_codes(rng: np.random.Generator, shape: Shape, frames: int) -> np.ndarray:
    """Four codes in turn for every codebook, three frames each, from a random one on."""
    turn = (np.arange(frames) // 3 + rng.integers(4)) % 4
    return ((turn[:, None] + 7 * np.arange(8)) % (shape.codebook - 2)).astype(np.uint16)


def _text(rng: np.random.Generator, shape: Shape, length: float) -> np.ndarray:
    return rng.integers(0, shape.vocabulary - 8, round(length)).astype(np.int64)
