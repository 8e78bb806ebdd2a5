"""Diagnostics as JSON; `docs/schema/diagnostics.v1.json` describes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import Span
from higgsc.compiler.render.text import display_name

SCHEMA = "higgsc.diagnostics/v1"


def render_json(diagnostics: tuple[Diagnostic, ...], cwd: Path | None) -> str:
    """One document with the counts and all diagnostics. Lines and columns count from 1, columns in code points."""
    document = {
        "schema": SCHEMA,
        "errors": sum(d.severity == "error" for d in diagnostics),
        "warnings": sum(d.severity == "warning" for d in diagnostics),
        "diagnostics": [_row(diagnostic, cwd) for diagnostic in diagnostics],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    # A file name or an argument that is no UTF-8 has lone surrogates in Python; JSON can hold them, but escaped.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _row(diagnostic: Diagnostic, cwd: Path | None) -> dict[str, Any]:
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message,
        "primary": _label(diagnostic.primary, cwd),
        "secondary": [_label(label, cwd) for label in diagnostic.secondary],
        "notes": list(diagnostic.notes),
        "help": diagnostic.help,
        "fix": {**_range(diagnostic.fix.span, cwd), "text": diagnostic.fix.text} if diagnostic.fix else None,
    }


def _label(label: Label, cwd: Path | None) -> dict[str, Any]:
    return {**_range(label.span, cwd), "label": label.text}


def _range(span: Span, cwd: Path | None) -> dict[str, Any]:
    return {
        "file": display_name(span.source, cwd),
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }
