"""What the training minimises."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from higgsc.spec.base import SpecModel

Weight = Annotated[float, Field(ge=0)]


class Contrastive(SpecModel):
    """Contrastive voice similarity: the target's hidden states are to be nearer to those of its own reference than to
    those of other speakers in the micro-batch, over all GPUs (InfoNCE). Needs data of several speakers."""

    weight: Weight = 0.1
    """Weight in the total."""
    temperature: float = Field(default=0.1, gt=0, le=10)
    """Divides the similarities, which lie between -1 and 1; the lower, the more the nearest voices count."""


class Point(SpecModel):
    """A point of a schedule."""

    step: int = Field(ge=0)
    """Optimizer steps done."""
    factor: Weight
    """What the weight is multiplied by there."""


class CodebookPoint(SpecModel):
    """A point of the codebooks' schedule."""

    step: int = Field(ge=0)
    """Optimizer steps done."""
    factors: tuple[Weight, ...]
    """What the weights of the eight codebooks are multiplied by there."""


class Schedule(SpecModel):
    """Factors on the weights in the course of the training: linear between two points, constant before the first and
    after the last."""

    text: tuple[Point, ...] = ()
    """Of the text loss."""
    audio: tuple[Point, ...] = ()
    """Of the audio loss."""
    contrastive: tuple[Point, ...] = ()
    """Of the contrastive loss."""
    codebooks: tuple[CodebookPoint, ...] = ()
    """Of the codebooks in the audio loss; only their ratios count. For coarse ones first, the fine ones begin at 0."""


class Loss(SpecModel):
    """Weights in `total = text * text loss + audio * audio loss`, and more where it is asked for.

    The audio loss is the mean cross-entropy over all labelled codes, ln 1026 = 6.93 for a uniform guess."""

    text: Weight = 1.0
    """Weight of the text loss: the target's audio begin, audio end and end-of-turn tokens."""
    audio: Weight = 1.0
    """Weight of the audio loss."""
    codebooks: tuple[Weight, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """Weights of the eight codebooks in the total's audio loss, first the coarsest. Only their ratios count: the audio
    loss is their weighted mean. The figures `loss/audio` and `validation/audio_loss` leave these weights out."""
    contrastive: Contrastive | None = None
    """Contrastive voice similarity; off if not given."""
    schedule: Schedule | None = None
    """How the weights change in the course of the training; they do not if not given."""
