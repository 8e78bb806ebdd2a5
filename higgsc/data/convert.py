"""`higgsc data convert`: a data file of any format to canonical records or to ChatML, a piece at a time."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.batches import batches_of
from higgsc.data.formats.protocol import Rename
from higgsc.data.formats.reading import Batch, Read
from higgsc.data.records import Record, Rejected
from higgsc.data.samples import SourceFile
from higgsc.data.writing import UNWRITABLE, write_canonical, write_chatml, write_turns

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
            overwrite the source (2); the source's path cannot be written as text (65).
    """
    if output.exists() and (not output.is_file() or output.samefile(source.path)):
        what = "the output is the data file itself" if output.is_file() else "the output is not a file"
        raise StepError(what, code=ExitCode.USAGE, path=output, help="name another one")
    reject_list = output.with_name(f"{output.name}.rejected.jsonl")
    rename = _renamer(source.path.parent, output.parent)
    place = os.path.relpath(source.path, output.parent)
    if not place.isprintable():  # bytes that are no UTF-8 are not, and could not be written as a name in JSON
        raise StepError(
            f"the data file's path from the output, {place!r}, holds signs that cannot be written",
            path=output,
            help="rename the folder or the file, or write the output beside the data file",
        )
    rejected, causes, first = 0, Counter[str](), ""
    with _writing(output) as stream, _writing(reject_list) as rejects:
        write = _Writer(stream, to, source.path, place, rename)
        for batch in batches_of(source, root=source.path.parent):
            refused = write(batch)
            rejected += len(refused)
            for one in refused:
                causes[cause_of(one.reason)] += 1
                first = first or f"; the first, {place}:{one.line}: {one.reason}"
                listed = {"id": one.id, "place": f"{place}:{one.line}", "cause": one.reason}
                rejects.write(msgspec.json.encode(listed) + b"\n")
        if not write.written:
            raise StepError(f"none of {rejected} samples can be read{first}", path=source.path)
    if not rejected:
        reject_list.unlink()
    return Converted(
        written=write.written,
        rejected=rejected,
        prompts=write.prompts,
        singles=write.singles,
        causes=tuple(causes.most_common()),
        rejects=reject_list if rejected else None,
    )


class _Writer:
    """Writes samples, together where that is possible, and counts them as `Converted` does."""

    def __init__(self, output: IO[bytes], to: OutputFormat, source: Path, place: str, rename: Rename | None) -> None:
        self._output, self._to, self._source, self._place, self._rename = output, to, source, place, rename
        self.written = self.prompts = self.singles = 0

    def __call__(self, batch: Batch | list[Read]) -> list[Rejected]:
        """Write what can be written; what cannot."""
        if not isinstance(batch, Batch):
            return self._each(batch, self._rename)
        origins = [f"{self._place}:{line}" for line in batch.lines]
        turns, rename = None, self._rename
        try:
            if self._to == "chatml" and (turns := batch.rows.turns(rename)) is not None:
                self._output.write(write_turns(turns, origins))
                self.written += len(origins)
            else:
                self._records(batch.rows.records(origins), rename)
        except UNWRITABLE:
            return self._each(batch.reads(), rename if turns is None else None)  # turns are renamed in place
        return []

    def _each(self, reads: list[Read], rename: Rename | None) -> list[Rejected]:
        refused: list[Rejected] = []
        for line, read in reads:
            if isinstance(read, Rejected):
                refused.append(read)
                continue
            try:
                self._records([msgspec.structs.replace(read, origin=read.origin or f"{self._place}:{line}")], rename)
            except UNWRITABLE as error:
                reason = f"cannot be written: {error}"
                refused.append(Rejected(id=read.id, source=self._source, line=line, reason=reason))
        return refused

    def _records(self, records: list[Record], rename: Rename | None) -> None:
        write = write_canonical if self._to == "canonical" else write_chatml
        self._output.write(write(records, rename))
        self.written += len(records)
        self.prompts += sum([record.target.audio is None for record in records])
        self.singles += sum([not record.references for record in records])


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
