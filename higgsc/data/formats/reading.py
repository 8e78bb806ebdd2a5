"""Data files to records: the format is chosen by name or by looking at the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any

from higgsc.contract.outcome import StepError
from higgsc.data.formats import (
    canonical,
    chatml,
    conversations,
    ljspeech,
    manifest,
    mixed,
    nemo,
    paired,
    swift,
    train_higgs_audio,
)
from higgsc.data.formats.fields import printable
from higgsc.data.formats.objects import (
    first_character,
    is_lines,
    locate_line,
    read_elements,
    read_head,
    read_objects,
)
from higgsc.data.formats.pieces import Elements, Place, pieces_of_array, pieces_of_lines
from higgsc.data.formats.protocol import Format, Rows
from higgsc.data.records import Record, Rejected

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        module.FORMAT.name: module.FORMAT
        for module in (
            chatml, mixed, manifest, paired, conversations, swift, nemo, ljspeech, train_higgs_audio, canonical,
        )
    }
)  # fmt: skip

Read = tuple[int, Record | Rejected]
"""1-based line where a sample starts, and the sample, usable or not."""

_ROWS_LOOKED_AT = 20


def detect(path: Path) -> tuple[Format, str]:
    """Name the format of a data file by what is in it, and the evidence for it.

    The first rows that are JSON decide; where they fit two formats alike, nothing is guessed.

    Raises:
        StepError: The file is missing (66), cannot be read, is of no known format, or fits more than one (65).
    """
    read_head(path)
    for form in FORMATS.values():
        if form.claims is not None and (evidence := form.claims(path)):
            return form, evidence
    line, found = _evidence(path)
    if len(found) == 1:
        ((name, evidence),) = found.items()
        return FORMATS[name], evidence
    candidates = "; ".join(f"{name} ({evidence})" for name, evidence in found.items())
    raise StepError(
        f"the format is ambiguous: {candidates}",
        path=path,
        line=line,
        help=f"say which it is with `format: {next(iter(found))}`, or --format",
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that follow each other, all of them sound."""

    lines: Sequence[int]
    """1-based line of each."""
    rows: Rows

    def reads(self) -> list[Read]:
        """The samples one by one."""
        return list(zip(self.lines, self.rows.records(repeat(None)), strict=True))


def read_records(path: Path, format_name: str, *, root: Path) -> Iterator[Read]:
    """Read a data file, in order and a piece at a time.

    Args:
        path: The data file.
        format_name: A key of `FORMATS`, or `auto` to look at its first samples.
        root: Samples without an id are named after the file's place below this folder.

    Raises:
        StepError: The file is missing (66), cannot be read, or is of no known format (65).
    """
    pieces = read_batches(path, format_name, root=root)
    return (read for piece in pieces for read in (piece.reads() if isinstance(piece, Batch) else piece))


def read_batches(path: Path, format_name: str, *, root: Path) -> Iterator[Batch | list[Read]]:
    """As `read_records`, many at a time; what no quick reader knows comes as a list."""
    if format_name != "auto" and format_name not in FORMATS:
        raise StepError(f"unknown data format {format_name!r}", path=path, help=f"known are auto, {', '.join(FORMATS)}")
    form = detect(path)[0] if format_name == "auto" else FORMATS[format_name]
    stem = os.path.relpath(path.with_suffix(""), root).replace(os.sep, ".").lstrip(".")
    read_head(path)
    if form.fast is not None and is_lines(path):
        return _read_lines(path, form, stem)
    if form.fast is not None and first_character(path) == "[":
        return _read_array(path, form, stem)
    return _read_rows(path, form, stem)


def _read_rows(path: Path, form: Format, stem: str) -> Iterator[list[Read]]:
    for number, located in enumerate(form.rows(path)):
        name = f"{stem}-{number:06d}"
        yield [(located.line, _record(located.value, located.problem, located.line, form, path, name))]


def _read_lines(path: Path, form: Format, stem: str) -> Iterator[Batch | list[Read]]:
    """As `_read_rows`, with the quick reader where it knows all lines of a piece, or one of them."""
    assert form.fast is not None
    quick, blank, first = form.fast(), 0, 1
    for lines in pieces_of_lines(path):
        if (rows := quick(lines)) is not None:
            yield Batch(range(first, first + len(lines)), rows)
            first += len(lines)
            continue
        reads: list[Read] = []
        for line in lines:
            if (row := quick([line])) is not None:
                reads.append((first, row.records(repeat(None))[0]))
            elif not line.strip():
                blank += 1
            else:
                located, name = locate_line(line, first), f"{stem}-{first - blank - 1:06d}"
                reads.append((first, _record(located.value, located.problem, first, form, path, name)))
            first += 1
        yield reads


def _read_array(path: Path, form: Format, stem: str) -> Iterator[Batch | list[Read]]:
    """As `_read_rows`, with the quick reader where it knows all rows of a piece, or one of them."""
    assert form.fast is not None
    quick, number = form.fast(), 0
    for piece in pieces_of_array(path, read_head(path)):
        rest = piece if isinstance(piece, Place) else None
        if isinstance(piece, Elements):
            if (rows := quick(piece.rows)) is not None:
                yield Batch(piece.lines, rows)
                number += len(piece.rows)
                continue
            reads: list[Read] = []
            for index, (row, line) in enumerate(zip(piece.rows, piece.lines, strict=True)):
                if (one := quick([row])) is not None:
                    reads.append((line, one.records(repeat(None))[0]))
                elif (located := locate_line(row, line)).problem is None:
                    reads.append((line, _record(located.value, None, line, form, path, f"{stem}-{number:06d}")))
                else:  # it was no element, or nothing can be found again after it
                    rest = piece.place(index)
                    break
                number += 1
            yield reads
        if rest is not None:
            for located in read_elements(path, "" if rest.offset else r"\[", start=rest):
                name = f"{stem}-{number:06d}"
                yield [(located.line, _record(located.value, None, located.line, form, path, name))]
                number += 1
            return


def _record(value: Any, problem: str | None, line: int, form: Format, path: Path, name: str) -> Record | Rejected:
    if problem is not None:
        return Rejected(id=name, source=path, line=line, reason=problem)
    try:
        return form.record(value, name, path)
    except ValueError as error:
        reason = str(error)
    fits = {other.name: evidence for other in FORMATS.values() if (evidence := other.detect(value, path))}
    if fits and form.name not in fits:
        other, evidence = next(iter(fits.items()))
        reason += f"; the row looks like {other} ({evidence}), and the file is read as {form.name}"
    return Rejected(id=_named(value) or name, source=path, line=line, reason=printable(reason))


def _named(value: Any) -> str | None:
    """The id that a bad sample gives itself, if it can be printed."""
    if not isinstance(value, dict):
        return None
    misc = value.get("misc")
    name = value.get("id", misc.get("sample_id") if isinstance(misc, dict) else None)
    return name if isinstance(name, str) and name and name.isprintable() else None


def _evidence(path: Path) -> tuple[int, dict[str, str]]:
    """The formats that the first row of any known format fits, each with its evidence, and the row's line."""
    seen: tuple[int, str] | None = None
    for number, located in enumerate(read_objects(path)):
        if number == _ROWS_LOOKED_AT:
            break
        if located.problem is not None:
            continue
        value = located.value
        if found := {form.name: printable(why) for form in FORMATS.values() if (why := form.detect(value, path))}:
            return located.line, found
        fields = f"the fields {', '.join(map(repr, value))}" if isinstance(value, dict) else f"{value!r:.60}"
        seen = seen or (located.line, fields)
    if seen is None:
        raise StepError("unknown data format: no line holds a JSON object", path=path)
    raise StepError(
        f"unknown data format: the first sample has {seen[1]}",
        path=path,
        line=seen[0],
        help=f"known formats: {', '.join(FORMATS)}",
    )
