"""JSON objects of a data file, each with its line: a JSON array, one object a line (JSONL), or objects over lines.

Everything is read in pieces, so memory does not grow with the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.formats.pieces import BEGINNING, Place

_BLANK = re.compile(r"[ \t\r\n]*")
_PIECE = 1 << 20
_LARGEST_SAMPLE = 1 << 24
"""Characters past which a sample that does not end is taken for broken."""
_HEAD = 1 << 16
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class Located:
    """An element of a data file: its value, or why it has none."""

    line: int
    """1-based line where the element starts."""
    value: Any = None
    problem: str | None = None


def read_objects(path: Path) -> Iterator[Located]:
    """Read the elements of a JSON array, of a JSONL file, or objects written over several lines, in order.

    A line of JSONL that is no JSON is handed on with its problem. Elsewhere nothing can be found again after a
    syntax error, so that one ends the reading.

    Raises:
        StepError: The file is missing (66), is empty, starts with neither `[` nor `{`, or is broken (65).
    """
    first = first_character(path)
    if first == "[":
        yield from read_elements(path, r"\[")
    elif is_lines(path):
        yield from _lines(path)
    else:
        yield from read_elements(path, "", separator="")


def read_head(path: Path) -> bytes:
    """The start of a data file.

    Raises:
        StepError: The file is missing, no file, or cannot be read (66).
    """
    try:
        # A pipe would be waited for.
        if path.exists() and not path.is_file():
            raise StepError("the data file is not a regular file", code=ExitCode.MISSING_INPUT, path=path)
        with path.open("rb") as stream:
            return stream.read(_HEAD)
    except FileNotFoundError as error:
        raise StepError("the data file does not exist", code=ExitCode.MISSING_INPUT, path=path) from error
    except OSError as error:
        raise StepError(
            f"cannot read the data file: {error.strerror}", code=ExitCode.MISSING_INPUT, path=path
        ) from error


def first_character(path: Path) -> str:
    """`[` or `{`, whichever a file of JSON starts with.

    Raises:
        StepError: The file is missing (66), empty, or of neither kind (65).
    """
    head = read_head(path)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first in (b"[", b"{"):
        return first.decode()
    if encoding := _OTHER_ENCODINGS.get(head[:2]):
        raise StepError(f"the data file is in {encoding}, not in UTF-8", path=path, help="save it as UTF-8")
    raise StepError(
        "the data file is empty" if not first else f"neither JSON nor JSONL: it starts with {first!r}",
        path=path,
        help="a data file is a JSON array of samples, or one sample a line",
    )


def is_lines(path: Path) -> bool:
    """Whether a file that starts with `{` has an object a line; it has not if the first one goes on after its line."""
    if first_character(path) != "{":
        return False
    head = read_head(path)
    if b"\n" not in head.lstrip():
        with path.open("rb") as stream:
            head = stream.read(_LARGEST_SAMPLE)
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    line = first.split(b"\n", 1)[0]
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        pass
    else:
        return True
    try:
        _, end = _DECODER.raw_decode(first.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return True
    return "\n" not in first.decode("utf-8", "replace")[:end]


def decode_line(line: bytes, *, first: bool) -> str:
    """A line as text, without the byte order mark that the first one may have."""
    return line.decode("utf-8-sig" if first else "utf-8")


def locate_line(line: bytes, number: int) -> Located:
    """The object on a line of JSONL."""
    try:
        return Located(number, _DECODER.decode(decode_line(line, first=number == 1)))
    except (ValueError, RecursionError) as error:
        return Located(number, problem=f"no JSON object on this line: {_explain(error)}")


def read_elements(
    path: Path, opening: str, *, separator: str = ",", to_the_end: bool = True, start: Place = BEGINNING
) -> Iterator[Located]:
    """Read elements of JSON one after the other.

    Args:
        path: The file.
        opening: Pattern of what comes before the first element; it has to be among the first 64 KiB.
        separator: What stands between elements: `,` in an array, nothing otherwise.
        to_the_end: Refuse text after the array's end.
        start: What comes before is not read.

    Raises:
        StepError: Not UTF-8, broken, or without elements.
    """
    with path.open("rb") as stream:
        text = _Pieces(stream, path, start)
        text.more()
        match = re.compile(rf"\s*{opening}" if to_the_end else opening, re.DOTALL).search(text.buffer)
        assert match is not None, "the caller has looked"
        text.position = match.end()
        text.skip_blank()
        if separator and text.next_is("]"):
            raise StepError("the data file holds no samples", path=path)
        while True:
            located, closing = _element(text, path, separator)
            yield located
            if closing == "]":
                break
            text.skip_blank()
            if not separator and text.at_end():
                return
        if to_the_end:
            text.skip_blank()
            if not text.at_end():
                rest = text.buffer[text.position :].strip()[:20]
                raise StepError(f"more text after the array's end: {rest!r}", path=path, line=text.line())


class _Pieces:
    """A file of text, of which only what is being looked at is in memory."""

    def __init__(self, stream: Any, path: Path, start: Place) -> None:
        self.buffer, self.position, self.ended = "", 0, False
        self._stream, self._path = stream, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._counted, self._lines_read = start.line, 0, start.line - 1
        stream.seek(start.offset)

    def more(self) -> None:
        """Read on; what lies before the position is let go."""
        self.line()
        piece = self._stream.read(max(_PIECE, len(self.buffer) - self.position))
        self.ended = not piece
        try:
            text = self._decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._lines_read + piece.count(b"\n", 0, error.start) + 1
            raise StepError("not UTF-8", path=self._path, line=line, help="save it as UTF-8") from error
        self._lines_read += piece.count(b"\n")
        self.buffer = self.buffer[self.position :] + text
        self.position = self._counted = 0

    def line(self, position: int | None = None) -> int:
        """1-based line of a position, of the current one if none is given, which it remembers."""
        if position is not None:
            return self._line + self.buffer.count("\n", self._counted, position)
        self._line += self.buffer.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line

    def skip_blank(self) -> None:
        """Go to the next character that is no white space, or to the end."""
        while True:
            self.position = _after_blank(self.buffer, self.position)
            if self.position < len(self.buffer) or self.ended:
                return
            self.more()

    def next_is(self, character: str) -> bool:
        return self.buffer.startswith(character, self.position)

    def at_end(self) -> bool:
        return self.ended and self.position >= len(self.buffer)


def _element(text: _Pieces, path: Path, separator: str) -> tuple[Located, str]:
    """The element at the position, and what follows it: `,`, `]`, or nothing."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text.buffer, text.position)
            end = _after_blank(text.buffer, end)
            closing = text.buffer[end : end + 1]
            # At the end of what was read, `12` may go on as `123`.
            if not closing and not text.ended:
                text.more()
                continue
            if separator and closing not in (separator, "]"):
                raise json.JSONDecodeError("expecting ',' or ']'", text.buffer, end)
        except (ValueError, RecursionError) as error:
            broken = isinstance(error, json.JSONDecodeError)
            if broken and not text.ended and len(text.buffer) - text.position < _LARGEST_SAMPLE:
                text.more()
                continue
            line = text.line()
            raise StepError(
                f"broken JSON: {_explain(error)}, in the sample that starts on line {line}",
                path=path,
                line=text.line(error.pos) if isinstance(error, json.JSONDecodeError) else line,
            ) from error
        located = Located(text.line(), value)
        text.position = end + len(separator)
        if separator and closing == separator:
            text.skip_blank()
        return located, closing


def _lines(path: Path) -> Iterator[Located]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.isspace():
                yield locate_line(line, number)


def _after_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _explain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return error.msg.lower() if isinstance(error, json.JSONDecodeError) else str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
