"""What a format is: how to know it, how to find its rows, how to read one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from higgsc.data.formats.chatml_parts import Answered, Audio, System
from higgsc.data.formats.objects import Located, read_objects
from higgsc.data.records import Record


class Columns(NamedTuple):
    """Samples that have one reference and a target, each with audio: the fields that checks look at, one by one."""

    ids: Sequence[str]
    speakers: Sequence[str]
    texts: Sequence[str]
    reference_texts: Sequence[str]
    audio: Sequence[str]
    """Names of the targets' files, then those of the references'."""


Rename = Callable[[str], str]
"""How a file is named as seen from elsewhere."""
Turns = tuple[str, System, str, Audio, str, Answered, str, str | None, Any]
"""A sample of ChatML: id, system's turn, text and audio of the reference, text of the target and the turn that holds it
with its audio, speaker, origin, and the raw JSON or `UNSET` of `misc`."""


class Rows(Protocol):
    """Samples read together, all of them sound."""

    def columns(self) -> Columns | None:
        """Their fields; None if one of them is no pair of reference and target."""

    def turns(self, rename: Rename | None) -> Iterable[Turns] | None:
        """Their turns, with other names for the audio, to be written again; None if they are no usual ChatML.

        Asked for once: the names are changed in place.
        """

    def records(self, origins: Iterable[str | None]) -> list[Record]:
        """The same as records; those that name no origin get theirs."""


Fast = Callable[[Sequence[bytes]], Rows | None]
"""A reader of rows of JSON for the usual case; None where the careful one has to look, a row at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format of data files."""

    name: str
    summary: str
    """One line for people."""
    detect: Callable[[Any, Path], str | None]
    """`detect(row, path)`: what shows that the row, of that file, is of this format; None if it is not."""
    record: Callable[[Any, str, Path], Record]
    """`record(row, id, path)`: the record; `id` is used if the row has none. A ValueError says what is missing."""
    rows: Callable[[Path], Iterator[Located]] = read_objects
    """The rows of a file with their lines."""
    fast: Callable[[], Fast] | None = None
    """Makes a reader of many lines of JSON at once that agrees with `record` and is ten times as quick."""
    claims: Callable[[Path], str | None] | None = None
    """For what is no list of JSON objects: what in the file itself, before any row, shows the format."""
