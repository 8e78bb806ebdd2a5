"""What the readers of data files hand on: voice-cloning samples, and samples that are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AudioSpan:
    """An audio file, or a part of one; equal spans are the same audio."""

    path: Path
    offset: float | None = None
    """Where the part starts, in seconds; None is the start."""
    duration: float | None = None
    """Length of the part in seconds; None is up to the end."""
    declared: float | None = field(default=None, compare=False)
    """Length of the whole file in seconds, as the data has it; None where it says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloningSample:
    """A reference in some voice, and a target in the same voice; texts as they are in the data."""

    id: str
    speaker: str
    """Empty where the data names none."""
    system: str
    scene: str | None
    reference_text: str
    reference_audio: AudioSpan
    target_text: str
    target_audio: AudioSpan
    source: Path
    """The data file."""
    line: int
    """1-based line in `source` where the sample starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A sample that cannot be used."""

    id: str
    source: Path
    line: int
    """1-based line in `source` where the sample starts."""
    reason: str
    """Lowercase, without a final period."""
