"""Files, and places inside them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

from higgsc.compiler.redact import mask

COMMAND_LINE = "--set"
"""How the command line is called where other values name their file."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFile:
    """The text of a spec. `name` is its path relative to the project root, the same on every machine."""

    path: Path
    name: str
    text: str
    line_starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = [0]
        # The line breaks that libyaml counts (YAML 1.1): \n, \r, \r\n, NEL, LS and PS.
        index, text = 0, self.text
        while index < len(text):
            if text[index] == "\r" and text[index + 1 : index + 2] == "\n":
                index += 1
            if text[index] in "\n\r\x85\u2028\u2029":
                starts.append(index + 1)
            index += 1
        object.__setattr__(self, "line_starts", tuple(starts))

    def offset(self, line: int, column: int) -> int:
        """The code point offset of a 0-based line and column."""
        return min(self.line_starts[min(line, len(self.line_starts) - 1)] + column, len(self.text))

    def line_of(self, offset: int) -> int:
        """The 0-based line that holds an offset."""
        return bisect_right(self.line_starts, offset) - 1

    def line_text(self, line: int) -> str:
        """The text of a 0-based line for people: without its line break, secrets masked, columns kept."""
        start = self.line_starts[line]
        end = self.line_starts[line + 1] if line + 1 < len(self.line_starts) else len(self.text)
        return mask(self.text[start:end].rstrip("\n\r\x85\u2028\u2029"))


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
            return f"{COMMAND_LINE} {mask(self.source.text)}"
        return f"{self.source.name}:{self.line}:{self.column}"
