"""Records that are fit for training, their audio found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from higgsc.data.formats.paths import homes_of, locate_audio
from higgsc.data.formats.reading import Read, read_records
from higgsc.data.layout import DEFAULT_SYSTEM
from higgsc.data.pairing import pair_within_speakers
from higgsc.data.records import Audio, AudioSpan, CloningSample, Record, Rejected

NO_TARGET = "no target audio: this is a prompt to generate from, not a sample to learn from"
NO_REFERENCE = "no reference: recordings of one speaker are paired with `pairing: same-speaker`"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A data file, and how to read it."""

    path: Path
    format: str = "auto"
    pairing: str | None = None
    """`same-speaker` gives recordings without a reference another one of their speaker; None leaves them."""
    speaker: str | None = None
    """Speaker of the rows that name none."""
    seed: int = 0
    """Of the pairing."""

    def records(self, *, root: Path) -> Iterator[Read]:
        """Its samples in order, with speaker and pairing applied.

        Raises:
            StepError: The file is missing (66), cannot be read, or is of no known format (65).
        """
        reads = read_records(self.path, self.format, root=root)
        if self.speaker is not None:
            reads = (_spoken_by(read, self.speaker) for read in reads)
        if self.pairing is not None:
            reads = pair_within_speakers(reads, source=self.path, seed=self.seed)
        return reads


def read_samples(
    source: SourceFile, *, root: Path, homes: tuple[Path, ...] | None = None
) -> Iterator[CloningSample | Rejected]:
    """Read a data file for training.

    Args:
        source: The file.
        root: The project root.
        homes: Folders inside which audio may lie; None is the project and the folder of the file.

    Raises:
        StepError: The file is missing (66), cannot be read, or is of no known format (65).
    """
    homes = homes_of(source.path, root) if homes is None else homes
    for line, read in source.records(root=root):
        if isinstance(read, Rejected):
            yield read
            continue
        try:
            yield cloning_sample(read, source=source.path, line=line, homes=homes)
        except ValueError as error:
            yield Rejected(id=read.id, source=source.path, line=line, reason=str(error))


def cloning_sample(record: Record, *, source: Path, line: int, homes: tuple[Path, ...]) -> CloningSample:
    """Make a sample of a record.

    Raises:
        ValueError: It lacks a reference or the target's audio, or its audio may not be read from where it lies.
    """
    if record.target.audio is None:
        raise ValueError(NO_TARGET)
    if not record.references:
        raise ValueError(NO_REFERENCE)
    if len(record.references) > 1:
        raise ValueError(f"{len(record.references)} references, where training takes one")
    reference = record.references[0]
    if reference.audio is None:
        raise ValueError("the reference has no audio")
    return CloningSample(
        id=record.id,
        speaker=record.speaker,
        system=record.system or DEFAULT_SYSTEM,
        scene=record.scene,
        reference_text=reference.text,
        reference_audio=span_of(reference.audio, source, homes),
        target_text=record.target.text,
        target_audio=span_of(record.target.audio, source, homes),
        source=source,
        line=line,
    )


def span_of(audio: Audio, source: Path, homes: tuple[Path, ...]) -> AudioSpan:
    """The audio that a data file names, found.

    Raises:
        ValueError: It may not be read from where it lies.
    """
    path = locate_audio(audio.path, source=source, homes=homes)
    # A duration on its own does not cut: data written by others has it rounded, to describe the file.
    if audio.offset is None:
        return AudioSpan(path, declared=audio.duration)
    return AudioSpan(path, audio.offset, audio.duration)


def _spoken_by(read: Read, speaker: str) -> Read:
    line, record = read
    if isinstance(record, Record) and not record.speaker:
        return line, msgspec.structs.replace(record, speaker=speaker)
    return read
