"""A data file in pieces of whole rows, for readers that take many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

_PIECE = 1 << 16
"""Bytes that are read together: few enough to stay in the processor's cache."""


def pieces_of_lines(path: Path) -> Iterator[list[bytes]]:
    """The lines of a file, many at a time; only the last may lack its line feed."""
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

