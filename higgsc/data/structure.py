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
from higgsc.data.convert import cause_of
from higgsc.data.formats.paths import homes_of, locate_audio
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
    hashes, characters, speakers = made.hashes.append, made.characters.append, made.speakers
    samples = 0
    for line, record in source.records(root=root):
        samples += 1
        if isinstance(record, Rejected):
            made.reject(f"{source.path}:{line}", record.id, record.reason)
            continue
        hashes(hash(record.id))
        target, references = record.target, record.references
        reason = None
        if target.audio is None:
            reason = NO_TARGET
        elif len(references) != 1:
            reason = NO_REFERENCE if not references else f"{len(references)} references, where training takes one"
        else:
            text, said, heard = target.text, target.audio, references[0].audio
            # What these three let pass is sound; the careful checks take longer than reading the row.
            reference = references[0].text
            if "<" in text or "<" in reference or len(text) > MAX_CHARACTERS or len(reference) > MAX_CHARACTERS:
                reason = _text_reason(text) or _text_reason(reference)
            names = f"{said.path}\n/{heard.path}" if heard is not None else ".."
            if ".." in names or ":" in names or "\0" in names or "\n//" in names or names[0] == "/":
                reason = reason or _path_reason((said, heard), source.path, homes)
        if reason is not None:
            made.reject(f"{source.path}:{line}", record.id, reason)
            continue
        characters(len(target.text))
        speakers[record.speaker] += 1
        if keep is not None:
            keep(source, line, record)
    made.samples += samples


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
