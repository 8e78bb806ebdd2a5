"""The rows of data files looked at without their audio: a pass in which memory hardly grows with the data."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from higgsc.catalog.codec import SPECIAL_TOKENS
from higgsc.data.batches import batches_of
from higgsc.data.convert import cause_of
from higgsc.data.formats.paths import homes_of, locate_audio
from higgsc.data.formats.protocol import Columns
from higgsc.data.formats.reading import Batch, Read
from higgsc.data.records import Audio, Record, Rejected
from higgsc.data.samples import NO_REFERENCE, NO_TARGET, SourceFile

EXAMPLES = 5
"""Places that are named for each problem."""
MAX_CHARACTERS = 2_000
"""Length past which a text is no sentence that somebody says in one recording."""

_CONTROL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))


@dataclass(slots=True)
class Problem:
    """One thing that is wrong, how often, and where."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """`file:line: id: reason`, the first few."""

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass(slots=True)
class Structure:
    """What the rows of all files say."""

    samples: int = 0
    bad: int = 0
    """Samples that preparation would leave out."""
    problems: dict[str, Problem] = field(default_factory=dict)
    """By cause."""
    speakers: Counter[str] = field(default_factory=Counter)
    characters: array[int] = field(default_factory=lambda: array("I"))
    """Length of each good sample's target text."""
    hashes: array[int] = field(default_factory=lambda: array("q"))
    """Of the ids, 8 bytes each, to find duplicates without holding the ids."""

    def reject(self, place: str, name: str, reason: str) -> None:
        """Count a sample that cannot be used."""
        self.bad += 1
        self.problems.setdefault(cause_of(reason), Problem()).add(f"{place}: {name}: {reason}")


Keep = Callable[[SourceFile, int, Record], None]
"""Gets each good record with its source and line."""


def check_structure(
    sources: tuple[SourceFile, ...], *, root: Path, roots: tuple[Path, ...], keep: Keep | None = None
) -> Structure:
    """Read all rows and check what can be checked without audio.

    Args:
        sources: The files.
        root: The project root, inside which audio may lie.
        roots: More folders inside which it may lie.
        keep: See `Keep`.

    Raises:
        StepError: A file is missing (66), cannot be read, or is of no known format (65).
    """
    made = Structure()
    for source in sources:
        _check_source(source, made, root, roots, keep)
    _name_duplicates(sources, made, root)
    return made


def _check_source(source: SourceFile, made: Structure, root: Path, roots: tuple[Path, ...], keep: Keep | None) -> None:
    homes = homes_of(source.path, root, roots)
    inside = tuple({f"{one}/" for home in homes for one in (home, home.resolve())})
    for batch in batches_of(source, root=root):
        if not isinstance(batch, Batch):
            _check_reads(batch, source, made, homes, keep)
            continue
        columns = batch.rows.columns()
        lengths = [] if columns is None else list(map(len, columns.texts))
        if columns is None or not _sound(columns, max(lengths), inside):
            _check_reads(batch.reads(), source, made, homes, keep)
            continue
        made.samples += len(columns.ids)
        # Appending to an array one by one takes longer than the hashes.
        made.hashes.frombytes(np.fromiter(map(hash, columns.ids), np.int64, len(lengths)).tobytes())
        made.characters.extend(lengths)
        made.speakers.update(columns.speakers)
        if keep is not None:
            for line, record in batch.reads():
                assert isinstance(record, Record)
                keep(source, line, record)


def _sound(columns: Columns, longest: int, inside: tuple[str, ...]) -> bool:
    """Whether there is nothing that a closer look at each could find; that takes ten times as long."""
    if max(longest, max(map(len, columns.reference_texts))) > MAX_CHARACTERS:
        return False
    if "<" in "\n".join(columns.texts) or "<" in "\n".join(columns.reference_texts):
        return False
    names = "\n".join(columns.audio)
    if ".." in names or ":" in names or "\0" in names:
        return False
    # Of what names begin with, only some rare signs come before a slash.
    return min(columns.audio) >= "0" or all(name.startswith(inside) for name in columns.audio if name[0] == "/")


def _check_reads(
    reads: list[Read], source: SourceFile, made: Structure, homes: tuple[Path, ...], keep: Keep | None
) -> None:
    """Samples looked at one by one."""
    made.samples += len(reads)
    for line, record in reads:
        if isinstance(record, Rejected):
            made.reject(f"{source.path}:{line}", record.id, record.reason)
            continue
        made.hashes.append(hash(record.id))
        if (reason := _reason(record, source.path, homes)) is not None:
            made.reject(f"{source.path}:{line}", record.id, reason)
            continue
        made.characters.append(len(record.target.text))
        made.speakers[record.speaker] += 1
        if keep is not None:
            keep(source, line, record)


def _reason(record: Record, source: Path, homes: tuple[Path, ...]) -> str | None:
    """Why a sample cannot be learned from; None if nothing says so."""
    if record.target.audio is None:
        return NO_TARGET
    if len(record.references) != 1:
        few = f"{len(record.references)} references, where training takes one"
        return few if record.references else NO_REFERENCE
    reference = record.references[0]
    for text in (record.target.text, reference.text):
        if bad := _text_reason(text):
            return bad
    return _path_reason((record.target.audio, reference.audio), source, homes)


def _path_reason(audios: tuple[Audio | None, ...], source: Path, homes: tuple[Path, ...]) -> str | None:
    for audio in audios:
        if audio is None:
            return "the reference has no audio"
        try:
            locate_audio(audio.path, source=source, homes=homes)
        except ValueError as error:
            return str(error)
    return None


def _text_reason(text: str) -> str | None:
    if len(text) > MAX_CHARACTERS:
        return f"a text of {len(text)} characters; the longest that is taken for a sentence has {MAX_CHARACTERS}"
    found = _CONTROL.search(text)
    return f"the text holds the control token {found.group()}" if found else None


def _name_duplicates(sources: tuple[SourceFile, ...], made: Structure, root: Path) -> None:
    """Ids used twice, by their hashes; only if there are some are the files read again to name them."""
    seen: set[int] = set()
    ordered = np.sort(np.frombuffer(made.hashes, dtype=np.int64))
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    for source in sources:
        for line, record in source.records(root=root):
            number = hash(record.id)
            if number not in twice or not isinstance(record, Record):
                continue
            if number in seen:
                made.reject(f"{source.path}:{line}", record.id, "the id was used before")
            seen.add(number)
