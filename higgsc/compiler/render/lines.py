"""One line a diagnostic: for editors and `grep` (`concise`), and for annotations on GitHub (`github`)."""

from __future__ import annotations

from pathlib import Path

from higgsc.compiler.diagnostics import Diagnostic
from higgsc.compiler.reading.position import escaped
from higgsc.compiler.render.text import display_name


def render_concise(diagnostics: tuple[Diagnostic, ...], cwd: Path | None) -> str:
    """`file:line:column: error[HC101] message; help`."""
    lines = []
    for diagnostic in diagnostics:
        span = diagnostic.primary.span
        way_out = f"; {diagnostic.help}" if diagnostic.help else ""
        lines.append(
            f"{escaped(display_name(span.source, cwd))}:{span.line}:{span.column}: "
            f"{diagnostic.severity}[{diagnostic.code}] {diagnostic.message}{way_out}\n"
        )
    return "".join(lines)


def render_github(diagnostics: tuple[Diagnostic, ...], cwd: Path | None) -> str:
    """Workflow commands (GitHub Actions, `::error file=…`), with the escapes that they need."""
    lines = []
    for diagnostic in diagnostics:
        span = diagnostic.primary.span
        properties = {
            "file": escaped(display_name(span.source, cwd)),
            "line": str(span.line),
            "col": str(span.column),
            "endLine": str(span.end_line),
            "endColumn": str(span.end_column),
            "title": diagnostic.code,
        }
        joined = ",".join(f"{name}={_escape(value, of_property=True)}" for name, value in properties.items())
        text = "\n".join([diagnostic.message, *diagnostic.notes, *([diagnostic.help] if diagnostic.help else [])])
        lines.append(f"::{diagnostic.severity} {joined}::{_escape(text)}\n")
    return "".join(lines)


def _escape(text: str, *, of_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if of_property else text
