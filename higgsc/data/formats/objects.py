"""JSON objects of a data file, each with its line: a JSON array, or one object a line (JSONL)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from higgsc.contract.outcome import ExitCode, StepError

_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Located:
    """An element of a data file: its value, or why it has none."""

    line: int
    """1-based line where the element starts."""
    value: Any = None
    problem: str | None = None


def read_objects(path: Path) -> Iterator[Located]:
    """Read the elements of a JSON array or of a JSONL file, in order.

    A line of JSONL that is no JSON is handed on with its problem. In an array nothing can be found again
    after a syntax error, so that one ends the reading.

    Raises:
        StepError: The file is missing (66), is empty, starts with neither `[` nor `{`, or its array is
            broken (65).
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except FileNotFoundError as error:
        raise StepError("the data file does not exist", code=ExitCode.MISSING_INPUT, path=path) from error
    except OSError as error:
        raise StepError(
            f"cannot read the data file: {error.strerror}", code=ExitCode.MISSING_INPUT, path=path
        ) from error
    if head == b"[":
        yield from _elements(path)
    elif head == b"{":
        yield from _lines(path)
    else:
        raise StepError(
            "the data file is empty" if not head else f"neither JSON nor JSONL: it starts with {head!r}",
            path=path,
            help="a data file is a JSON array of samples, or one sample a line",
        )


def _lines(path: Path) -> Iterator[Located]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield Located(number, _DECODER.decode(line.decode("utf-8-sig" if number == 1 else "utf-8")))
            except (ValueError, RecursionError) as error:
                yield Located(number, problem=f"no JSON object on this line: {_explain(error)}")


def _elements(path: Path) -> Iterator[Located]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepError(
            "not UTF-8", path=path, line=content.count(b"\n", 0, error.start) + 1, help="save it as UTF-8"
        ) from error
    del content
    line, counted = 1, 0
    position = _after_blank(text, _after_blank(text, 0) + 1)
    if text.startswith("]", position):
        raise StepError("the data file holds no samples", path=path)
    while True:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
            end = _after_blank(text, end)
            if text[end : end + 1] not in (",", "]"):
                raise json.JSONDecodeError("expecting ',' or ']'", text, end)
        except (ValueError, RecursionError) as error:
            at = text.count("\n", 0, error.pos) + 1 if isinstance(error, json.JSONDecodeError) else line
            raise StepError(
                f"broken JSON: {_explain(error)}, in the sample that starts on line {line}",
                path=path,
                line=at,
            ) from error
        yield Located(line, value)
        if text[end] == "]":
            if rest := text[end + 1 :].strip():
                at = text.count("\n", 0, end) + 1
                raise StepError(f"more text after the array's end: {rest[:20]!r}", path=path, line=at)
            return
        position = _after_blank(text, end + 1)


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
