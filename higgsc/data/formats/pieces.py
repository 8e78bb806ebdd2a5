"""A data file in pieces of whole rows, for readers that take many at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path

_PIECE = 1 << 16
"""Bytes that are read together: few enough to stay in the processor's cache."""
_LONGEST = 1 << 22
"""Bytes without the end of a row past which an array is left to who takes it apart a sign at a time."""
_FIRST_ROW = re.compile(rb'(?:\xef\xbb\xbf)?\s*\[(?P<blank>\s*)(?P<row>\{\s*"[^"\\]*"\s*:)')


def pieces_of_lines(path: Path) -> Iterator[list[bytes]]:
    """The lines of a file, many at a time, with their ends."""
    with path.open("rb", buffering=0) as stream:
        begun: list[bytes] = []
        while piece := stream.read(_PIECE):
            if end := piece.rfind(b"\n") + 1:
                yield BytesIO(b"".join((*begun, piece[:end]))).readlines()
                begun = [piece[end:]]
            else:
                begun.append(piece)
        if last := b"".join(begun):
            yield [last]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file a row starts."""

    offset: int
    """In bytes."""
    line: int
    """1-based."""


BEGINNING = Place(0, 1)


@dataclass(frozen=True, slots=True)
class Elements:
    """What seem to be elements of an array that follow each other: they are if each is an object as it stands.

    Whatever lies between them has been seen, so nothing else can be in that part of the array.
    """

    start: int
    """Byte of the first."""
    rows: list[bytes]
    lines: Sequence[int]
    """1-based line of each."""
    between: int
    """Bytes from one to the next."""

    def place(self, number: int) -> Place:
        """Where one of them starts."""
        return Place(self.start + sum(map(len, self.rows[:number])) + number * self.between, self.lines[number])


def pieces_of_array(path: Path, head: bytes) -> Iterator[Elements | Place]:
    """The elements of a JSON array of objects, cut where the text between two of them repeats; then the place of what
    is left: the last element at least, or everything where the array is written in no regular way.

    Args:
        path: The file.
        head: Its first bytes.
    """
    if (beginning := _FIRST_ROW.match(head)) is None:
        yield BEGINNING
        return
    blank, start = beginning["blank"], beginning.start("row")
    line = head.count(b"\n", 0, start) + 1
    # Within an element no line is as far to the left as its braces. On a line, its first key has to tell it.
    opening = b"{" if b"\n" in blank else beginning["row"]
    cuts = [b"}," + blank + opening] if blank else [b"}, " + opening, b"}," + opening]
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        content, cut = b"", None
        while (piece := stream.read(max(_PIECE, len(content)))) and len(content) < _LONGEST:
            content += piece
            cut = cut or next((one for one in cuts if one in content), None)
            if cut is None or (end := content.rfind(cut)) < 0:
                continue
            inner = content[:end].split(cut)
            rows = [opening + row + b"}" for row in inner]
            rows[0] = inner[0] + b"}"
            between = len(cut) - len(opening) - 1
            if b"\n" in content[: end + len(cut)]:
                ends = blank.count(b"\n")
                lines = list(accumulate((row.count(b"\n") + ends for row in rows), initial=line))
                line = lines.pop()
                yield Elements(start, rows, lines, between)
            else:
                yield Elements(start, rows, [line] * len(rows), between)
            start += end + 1 + between
            content = content[end + 1 + between :]
    yield Place(start, line)
