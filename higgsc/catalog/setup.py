"""What a training's costs follow from: model, precision, adapter and mesh; and the lengths of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.codec import DELAY_ROWS, EXTRA_ROWS_PER_CLIP, FRAMES_PER_SECOND
from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape
from higgsc.catalog.quantized import Quantize

TEXT_TOKENS_PER_SECOND = 8.0
"""Assumption: text tokens for one second of speech, chat template included. With the codec's 25 frames that makes 33
tokens a second, the middle of the 30 to 40 that transcripts in several languages come to; the prepare step counts the
real ones."""

Checkpointing = Literal["none", "selective", "full"]
"""What layers keep for the backward pass: everything, their dear products, their input alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The length of a voice-cloning sample."""

    reference: int
    """Frames of the reference."""
    target: int
    """Frames of the target."""
    text: int
    """Text tokens around them."""

    @classmethod
    def of_seconds(cls, reference: float, target: float) -> Sample:
        """From seconds of speech, with the codec's frame rate and `TEXT_TOKENS_PER_SECOND`."""
        frames = [max(1, round(seconds * FRAMES_PER_SECOND)) for seconds in (reference, target)]
        # At least the tokens that every sample has: one in front, two between the clips, two behind.
        return cls(
            reference=frames[0],
            target=frames[1],
            text=max(5, round((reference + target) * TEXT_TOKENS_PER_SECOND)),
        )

    @classmethod
    def of_tokens(cls, tokens: int) -> Sample:
        """A row of so many tokens as if it were one sample, all of its speech in the target: what takes most memory.

        A packed row comes near it where many targets share a reference.
        """
        text = max(5, round(tokens * TEXT_TOKENS_PER_SECOND / (TEXT_TOKENS_PER_SECOND + FRAMES_PER_SECOND)))
        return cls(reference=1, target=max(1, tokens - text - 1 - 2 * EXTRA_ROWS_PER_CLIP), text=text)

    @property
    def audio_rows(self) -> int:
        """Rows of both clips: frames + 9 each."""
        return self.reference + self.target + 2 * EXTRA_ROWS_PER_CLIP

    @property
    def tokens(self) -> int:
        """Positions of the language model, text and audio."""
        return self.audio_rows + self.text

    @property
    def labelled_rows(self) -> int:
        """Positions with audio labels: the target's frames, one end-of-stream row, seven rows of delay."""
        return self.target + 1 + DELAY_ROWS

    @property
    def labelled(self) -> Sample:
        """What the last layer goes on with after its attention: the positions with labels, two of them text."""
        return _Labelled(reference=0, target=self.target, text=2)


class _Labelled(Sample):
    """The labelled positions of a sample: the audio rows with labels and the last one, and two of text."""

    @property
    def audio_rows(self) -> int:
        return self.labelled_rows + 1


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What determines the costs, beside the length of the samples."""

    shape: HiggsAudioV2Shape
    precision: Literal["bf16", "fp32"]
    lora: AdapterShape | None
    """None: every parameter is trained."""
    replicate: int
    shard: int
    accumulation: int
    activation_checkpointing: Checkpointing = "none"
    tensor: int = 1
    sequence: bool = False
    """Whether tensor groups divide the residual stream along the sequence."""
    whisper: int | None = None
    """Features that a Whisper hears of each frame of a reference; None: none listens."""
    quantize: Quantize | None = None
    """How the matrices of the layers are rounded; None leaves them in `precision`."""

    @property
    def adapter(self) -> AdapterShape:
        """The adapter; to be asked for where there is one."""
        assert self.lora is not None, "the whole model is trained"
        return self.lora

    @cached_property
    def held(self) -> HiggsAudioV2Shape:
        """The shape of what one process of a tensor group computes with."""
        return self.shape.divided(self.tensor)

    @property
    def stretches(self) -> int:
        """Processes that share the residual stream of a row."""
        return self.tensor if self.sequence else 1

    @cached_property
    def modules(self) -> Mapping[str, tuple[int, int]]:
        """Modules with an adapter: path to `(out, in)`, as one process holds them."""
        return {} if self.lora is None else self.lora.modules(self.held)

    @cached_property
    def trained(self) -> Mapping[str, int]:
        """Trained numbers by module, on one process."""
        if self.lora is None:
            return {name.removesuffix(".weight"): prod(size) for name, size in self.held.parameters().items()}
        return self.lora.parameters(self.held)

    @property
    def base_itemsize(self) -> int:
        """Bytes of a number of the base, where it is not quantised, and of what is computed."""
        return 2 if self.precision == "bf16" else 4

    @property
    def attention_width(self) -> int:
        return self.held.attention_heads * self.held.head_dim

    @cached_property
    def trained_parameters(self) -> int:
        """Trained numbers, all modules of one process together, and the projector of what a Whisper hears."""
        return sum(self.trained.values()) + self.projector

    @property
    def projector(self) -> int:
        """Numbers of the projector, which is whole on every process of a tensor group."""
        return self.shape.hidden_size * (self.whisper or 0)

    @property
    def plain(self) -> bool:
        """Whether adapters are added to the base's products in place, rather than called as modules of their own."""
        return self.adapter.dropout == 0 and not self.adapter.dora
