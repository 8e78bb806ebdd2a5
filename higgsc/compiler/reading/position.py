"""Files, and places inside them."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

from higgsc.compiler.reading.redact import mask

MAX_EXCERPT = 240
"""Characters of a line that are shown."""
_MASKED_AROUND = 2000
_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""Would break a line, drive the terminal, or turn the direction of what follows. The tab is not among them."""
_REPLACEMENT = "\ufffd"

COMMAND_LINE = "--set"
"""How the command line is called where other values name their file."""


_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What libyaml (YAML 1.1) counts as the end of a line."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFile:
    """The text of a spec. `name` is its path relative to the project root, the same on every machine."""

    path: Path
    name: str
    text: str
    line_starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = (0, *(found.end() for found in _LINE_BREAK.finditer(self.text)))
        object.__setattr__(self, "line_starts", starts)

    def offset(self, line: int, column: int) -> int:
        """The code point offset of a 0-based line and column."""
        return min(self.line_starts[min(line, len(self.line_starts) - 1)] + column, len(self.text))

    def line_of(self, offset: int) -> int:
        """The 0-based line that holds an offset."""
        return bisect_right(self.line_starts, offset) - 1

    def line_text(self, line: int) -> str:
        """The text of a 0-based line, without its line break."""
        start = self.line_starts[line]
        end = self.line_starts[line + 1] if line + 1 < len(self.line_starts) else len(self.text)
        return self.text[start:end].rstrip("\n\r\x85\u2028\u2029")

    def excerpt(self, offset: int) -> tuple[str, int]:
        """The line of an offset for people, and the offset's 0-based column in it.

        Secrets are masked, and what would drive the terminal or turn the direction of the text is replaced, one
        character by one. Of a very long line only the part around the offset is given, between ellipses.
        """
        line = self.line_of(offset)
        text, column = self.line_text(line), offset - self.line_starts[line]
        first = max(0, column - MAX_EXCERPT // 3) if len(text) > MAX_EXCERPT else 0
        last = min(len(text), first + MAX_EXCERPT)
        # Masked with what surrounds the part: half a token would not be recognised.
        around = max(0, first - _MASKED_AROUND)
        shown = mask(text[around : last + _MASKED_AROUND])[first - around : last - around]
        head, tail = "…" if first else "", "…" if last < len(text) else ""
        return f"{head}{_UNPRINTABLE.sub(_REPLACEMENT, shown)}{tail}", column - first + len(head)


def escaped(text: str) -> str:
    """`text` on one line that every terminal shows as it is: controls, tabs and lone surrogates as `\\x..`."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text.replace("\t", "\\t"))


@dataclass(frozen=True, slots=True)
class Span:
    """A range of code points in a file, end exclusive."""

    source: SourceFile
    start: int
    end: int

    @property
    def line(self) -> int:
        """1-based line of the start."""
        return self.source.line_of(self.start) + 1

    @property
    def column(self) -> int:
        """1-based column of the start, in code points."""
        return self.start - self.source.line_starts[self.line - 1] + 1

    @property
    def end_line(self) -> int:
        """1-based line of the end."""
        return self.source.line_of(self.end) + 1

    @property
    def end_column(self) -> int:
        """1-based column behind the last code point."""
        return self.end - self.source.line_starts[self.end_line - 1] + 1

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def __str__(self) -> str:
        if self.source.name == COMMAND_LINE:
            # On one line, whatever was typed: it goes into comments of `resolved.yaml`.
            return f"{COMMAND_LINE} {escaped(mask(self.source.text))}"
        return f"{self.source.name}:{self.line}:{self.column}"
