"""Diagnostics as text, in the manner of rustc: message, place, line, caret, notes and help."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import SourceFile, Span, escaped


class Palette:
    """ANSI colours, or nothing."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour

    def paint(self, text: str, style: str) -> str:
        codes = {"error": "1;31", "warning": "1;33", "bold": "1", "gutter": "1;34", "help": "1;36", "dim": "2"}
        return f"\x1b[{codes[style]}m{text}\x1b[0m" if self.colour and text else text


def render_text(diagnostics: tuple[Diagnostic, ...], *, cwd: Path | None = None, colour: bool = False) -> str:
    """All diagnostics, one block each, with a count at the end.

    Args:
        diagnostics: What to print.
        cwd: File names are shown relative to this folder, so that terminals can open them.
        colour: Whether to use ANSI escapes.
    """
    palette = Palette(colour)
    blocks = [_block(diagnostic, palette, cwd) for diagnostic in diagnostics]
    return "\n".join(blocks)


def display_name(source: SourceFile, cwd: Path | None) -> str:
    """The file's name as seen from `cwd`, when the file lies below it."""
    if cwd is None:
        return source.name
    relative = os.path.relpath(source.path.absolute(), cwd)
    return source.name if relative.startswith("..") else relative


def _named(source: SourceFile, cwd: Path | None) -> str:
    """The same for people: a file name may hold line breaks and bytes that are no text."""
    return escaped(display_name(source, cwd))


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal (wide East Asian characters two, combining marks none)."""
    width = 0
    for character in text:
        if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
            continue
        width += 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
    return width


def _block(diagnostic: Diagnostic, palette: Palette, cwd: Path | None) -> str:
    span = diagnostic.primary.span
    head = palette.paint(f"{diagnostic.severity}[{diagnostic.code}]", diagnostic.severity)
    lines = [f"{head}: {palette.paint(diagnostic.message, 'bold')}"]
    labels = [label for label in (diagnostic.primary, *diagnostic.secondary) if label.span.source.text]
    gutter = max((len(str(label.span.line)) for label in labels), default=1)
    place = f"{_named(span.source, cwd)}:{span.line}:{span.column}" if span.source.text else _named(span.source, cwd)
    lines.append(f"{' ' * gutter}{palette.paint('-->', 'gutter')} {place}")
    bar = palette.paint("|", "gutter")
    if labels:
        lines.append(f"{' ' * gutter} {bar}")
    same_file = sorted(
        (label for label in labels if label.span.source is span.source), key=lambda label: label.span.start
    )
    line = ""
    for label in same_file:
        shown, mark = _excerpt(label, label is diagnostic.primary, gutter, palette)
        lines += [mark] if shown == line else [shown, mark]
        line = shown
    for label in labels:
        if label.span.source is not span.source:
            other = label.span
            where = f"{_named(other.source, cwd)}:{other.line}:{other.column}"
            lines.append(f"{' ' * gutter}{palette.paint(':::', 'gutter')} {where}")
            lines += [*_excerpt(label, False, gutter, palette)]
    extra = [("note", note) for note in diagnostic.notes]
    extra += [("help", diagnostic.help)] if diagnostic.help else []
    if extra and labels:
        lines.append(f"{' ' * gutter} {bar}")
    for kind, text in extra:
        lines.append(f"{' ' * gutter} {palette.paint('=', 'gutter')} {palette.paint(kind, 'help')}: {text}")
    return "\n".join(lines) + "\n"


def _excerpt(label: Label, primary: bool, gutter: int, palette: Palette) -> tuple[str, str]:
    """The line of a label, and the mark below it."""
    span: Span = label.span
    text, column = span.source.excerpt(span.start)
    marked = text[column : column + (span.end - span.start)]
    before = "".join("\t" if c == "\t" else " " * display_width(c) for c in text[:column])
    mark = ("^" if primary else "-") * max(1, display_width(marked))
    note = f" {label.text}" if label.text else ""
    bar = palette.paint("|", "gutter")
    return (
        f"{palette.paint(str(span.line).rjust(gutter), 'gutter')} {bar} {text}",
        f"{' ' * gutter} {bar} {before}{palette.paint(mark + note, 'error' if primary else 'gutter')}",
    )
