"""`higgsc data convert`: a data file of any format to canonical records or to ChatML, a piece at a time."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Literal

import msgspec

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.batches import batches_of
from higgsc.data.formats.reading import Batch, Read
from higgsc.data.records import Record, Rejected
from higgsc.data.samples import SourceFile
from higgsc.data.writing import UNWRITABLE, Rename, Write, write_canonical, write_chatml

OutputFormat = Literal["canonical", "chatml"]

_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What became of a data file."""

    written: int
    rejected: int
    prompts: int
    """Of the written, those without target audio: to generate from, not to learn from."""
    singles: int
    """Of the written, those without a reference."""
    causes: tuple[tuple[str, int], ...]
    """Why samples were rejected, quoted values left out, the most frequent first."""
    rejects: Path | None
    """Where the rejected are listed; None if there are none."""


def convert(source: SourceFile, output: Path, *, to: OutputFormat = "canonical") -> Converted:
    """Convert a data file. Texts stay as they are; audio stays where it is and is named as seen from the output.

    Args:
        source: The file, and how to read it.
        output: The file to write, one sample a line; whole or not at all. Rejected samples go to a file beside it
            that ends in `.rejected.jsonl`, each with its cause and place.
        to: What to write.

    Raises:
        StepError: The source is missing (66), cannot be read, or holds no sample that can be (65); the output would
            overwrite the source (2).
    """
    if output.exists() and (not output.is_file() or output.samefile(source.path)):
        what = "the output is the data file itself" if output.is_file() else "the output is not a file"
        raise StepError(what, code=ExitCode.USAGE, path=output, help="name another one")
    reject_list = output.with_name(f"{output.name}.rejected.jsonl")
    rename = _renamer(source.path.parent, output.parent)
    place = os.path.relpath(source.path, output.parent)
    tally, causes, first = Counter[str](), Counter[str](), ""
    write = _WRITERS[to]
    with _writing(output) as stream, _writing(reject_list) as rejects:
        for batch in batches_of(source, root=source.path.parent):
            records, refused = _write(batch, source.path, place, lambda records: stream.write(write(records, rename)))
            tally["written"] += len(records)
            tally["prompts"] += sum([record.target.audio is None for record in records])
            tally["singles"] += sum([not record.references for record in records])
            tally["rejected"] += len(refused)
            for one in refused:
                causes[cause_of(one.reason)] += 1
                first = first or f"; the first, {place}:{one.line}: {one.reason}"
                listed = {"id": one.id, "place": f"{place}:{one.line}", "cause": one.reason}
                rejects.write(msgspec.json.encode(listed) + b"\n")
        if not tally["written"]:
            raise StepError(f"none of {tally['rejected']} samples can be read{first}", path=source.path)
    if not tally["rejected"]:
        reject_list.unlink()
    return Converted(
        written=tally["written"],
        rejected=tally["rejected"],
        prompts=tally["prompts"],
        singles=tally["singles"],
        causes=tuple(causes.most_common()),
        rejects=reject_list if tally["rejected"] else None,
    )


def _write(
    batch: Batch | list[Read], source: Path, place: str, write: Callable[[list[Record]], object]
) -> tuple[list[Record], list[Rejected]]:
    """Write what can be written, together if possible; what was, and what was rejected."""
    if isinstance(batch, Batch):
        records = batch.rows.records(map(f"{place}:{{}}".format, count(batch.first)))
        try:
            write(records)
        except UNWRITABLE:
            return _write_each(list(enumerate(records, batch.first)), source, place, write)
        return records, []
    return _write_each(batch, source, place, write)


def _write_each(
    reads: list[Read], source: Path, place: str, write: Callable[[list[Record]], object]
) -> tuple[list[Record], list[Rejected]]:
    written: list[Record] = []
    refused: list[Rejected] = []
    for line, read in reads:
        if isinstance(read, Rejected):
            refused.append(read)
            continue
        try:
            write([msgspec.structs.replace(read, origin=read.origin or f"{place}:{line}")])
        except UNWRITABLE as error:
            refused.append(Rejected(id=read.id, source=source, line=line, reason=f"cannot be written: {error}"))
        else:
            written.append(read)
    return written, refused


def cause_of(reason: str) -> str:
    """A reason without what differs from sample to sample, so that reasons can be counted."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\{.*|-?\d[\d.]*", "…", reason)


def _renamer(before: Path, after: Path) -> Rename | None:
    """How a name relative to one folder is named relative to another; None if it is the same folder."""
    way = os.path.relpath(before, after)
    if way == ".":
        return None

    def rename(name: str) -> str:
        if _ABSOLUTE.match(name):
            return name
        return os.path.normpath(f"{way}/{name}") if "." in name[:3] or "/." in name else f"{way}/{name}"

    return rename


_WRITERS: dict[OutputFormat, Write] = {"canonical": write_canonical, "chatml": write_chatml}


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
