"""What data files hold, in one shape for all formats, and what preparation makes of it.

A `Record` is one sample as it can be written down again: audio by the name that the data gives it, relative to the
data file. A `CloningSample` is a record that is fit for training, its audio found (`higgsc.data.samples`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import Struct


class Audio(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """An audio file, or a part of one, as a data file names it."""

    path: str
    """Relative to the data file, or absolute."""
    offset: float | None = None
    """Where the part starts, in seconds; None is the whole file."""
    duration: float | None = None
    """Seconds. With an offset, the length of the part; without one, what the data says of the file's length."""


class Utterance(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """Something said, and the recording of it."""

    text: str
    audio: Audio | None = None


class Record(Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """One sample of a data file: the canonical form, written as a line of JSON."""

    id: str
    target: Utterance
    """What is to be said. Without audio the record is a prompt to generate from, not a sample to learn from."""
    references: tuple[Utterance, ...] = ()
    """Turns that come before the target in the same voice, each with its audio; none in single-speaker data."""
    speaker: str = ""
    """Whose voice it is; empty where the data names none."""
    system: str | None = None
    """System text; None leaves it to the model's default."""
    scene: str | None = None
    """Description of the recording's surroundings."""
    extra: dict[str, Any] | None = None
    """Keys of the sample that have no meaning here, kept as they are."""
    origin: str | None = None
    """`file:line` that the record was converted from."""


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
