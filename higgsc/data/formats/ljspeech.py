"""LJSpeech: a `metadata.csv` of `id|text|normalised text`, recordings in `wavs/` beside it.

No header and no quoting: a `|` cannot be part of a text. The normalised text is what was spoken, so it wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from higgsc.data.formats.fields import name_of, said
from higgsc.data.formats.objects import Located, decode_line, read_head
from higgsc.data.formats.protocol import Format
from higgsc.data.records import Audio, Record, Utterance


def rows(path: Path) -> Iterator[Located]:
    """The lines of the file, each split at `|`."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield Located(number, decode_line(line, first=number == 1).rstrip("\r\n").split("|"))
            except UnicodeDecodeError:
                yield Located(number, problem="not UTF-8")


def claims(path: Path) -> str | None:
    """The first line is `id|text` or `id|text|text`, and no JSON."""
    head = read_head(path).decode("utf-8-sig", "replace").lstrip()
    line = head.splitlines()[0] if head else ""
    columns = line.split("|")
    if line[:1] in ("{", "[") or len(columns) not in (2, 3):
        return None
    return f"the first line has {len(columns)} columns divided by |"


def detect(row: Any, _path: Path) -> str | None:
    """Rows are lists only here."""
    return f"{len(row)} columns" if isinstance(row, list) and len(row) in (2, 3) else None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a line: a target without a reference.

    Raises:
        ValueError: It has not two or three columns, or no text.
    """
    if not isinstance(row, list) or len(row) not in (2, 3):
        columns = len(row) if isinstance(row, list) else 0
        raise ValueError(f"a line is `id|text` or `id|text|normalised text`, this one has {columns} columns")
    name = name_of(row[0].strip(), "id") or default_id
    text = next((column for column in reversed(row[1:]) if column.strip()), "")
    return Record(
        id=name.removesuffix(".wav"),
        target=Utterance(
            said(text, "transcript").strip(), Audio(f"wavs/{name if name.endswith('.wav') else f'{name}.wav'}")
        ),
        extra={"text": row[1]} if len(row) == 3 and row[1] != text and row[1].strip() else None,
    )


FORMAT = Format(
    name="ljspeech",
    summary="`metadata.csv` of id|text|normalised text, beside `wavs/`",
    detect=detect,
    record=record,
    rows=rows,
    claims=claims,
)
