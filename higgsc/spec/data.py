"""What the model learns from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from higgsc.spec.base import FilePath, SpecModel


class Source(SpecModel):
    """A file of voice-cloning samples."""

    path: FilePath
    """Relative to the project root. Audio paths inside the file are relative to the file."""
    format: Literal["auto", "chatml"] = "auto"
    """`auto` looks into the file."""


class Validation(SpecModel):
    """Samples held out from training."""

    fraction: float = Field(default=0.02, ge=0, le=0.5)
    """Share of the samples, chosen by a hash of their ids and the seed; at least one unless 0."""


class Limits(SpecModel):
    """Which samples are fit for training. The others are rejected, counted and listed by name."""

    min_seconds: float = Field(default=0.5, gt=0)
    """Shortest reference or target recording."""
    max_seconds: float = Field(default=30.0, gt=0, le=600)
    """Longest reference or target recording."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of rejected samples past which preparation stops instead of going on without them."""


class Data(SpecModel):
    """What the model learns from."""

    train: tuple[Source, ...] = Field(min_length=1)
    """Files of samples."""
    validation: Validation = Validation()
    """Samples held out from training."""
    limits: Limits = Limits()
    """Which samples are fit for training."""
    store: FilePath | None = None
    """Folder of the encoded samples; `<output>/store` if not given."""
