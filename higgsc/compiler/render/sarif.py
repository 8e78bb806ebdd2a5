"""Diagnostics as SARIF 2.1.0 (OASIS), for code hosts and editors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from higgsc import __version__
from higgsc.compiler.codes import CODES
from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import Span
from higgsc.compiler.render.text import display_name

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render_sarif(diagnostics: tuple[Diagnostic, ...], cwd: Path | None) -> str:
    """One run with the rules that were broken and a result for each diagnostic."""
    rules = sorted({diagnostic.code for diagnostic in diagnostics})
    run = {
        "tool": {"driver": {"name": "higgsc", "version": __version__, "rules": [_rule(code) for code in rules]}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, rules, cwd) for diagnostic in diagnostics],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _rule(code: str) -> dict[str, Any]:
    entry = CODES[code]
    return {
        "id": code,
        "shortDescription": {"text": entry.title},
        "fullDescription": {"text": entry.explanation},
        "defaultConfiguration": {"level": entry.severity},
    }


def _result(diagnostic: Diagnostic, rules: list[str], cwd: Path | None) -> dict[str, Any]:
    text = "\n".join(
        [diagnostic.message, *diagnostic.notes, *([f"help: {diagnostic.help}"] if diagnostic.help else [])]
    )
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rules.index(diagnostic.code),
        "level": diagnostic.severity,
        "message": {"text": text},
        "locations": [_location(diagnostic.primary, cwd)],
    }
    if diagnostic.secondary:
        related = [{"id": i, **_location(label, cwd)} for i, label in enumerate(diagnostic.secondary)]
        result["relatedLocations"] = related
    if diagnostic.fix is not None:
        span = diagnostic.fix.span
        replacement = {"deletedRegion": _region(span), "insertedContent": {"text": diagnostic.fix.text}}
        change = {"artifactLocation": {"uri": _uri(span, cwd)}, "replacements": [replacement]}
        result["fixes"] = [{"description": {"text": diagnostic.help or "fix"}, "artifactChanges": [change]}]
    return result


def _location(label: Label, cwd: Path | None) -> dict[str, Any]:
    place: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(label.span, cwd)}, "region": _region(label.span)}
    }
    return {**place, "message": {"text": label.text}} if label.text else place


def _region(span: Span) -> dict[str, int]:
    return {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.end_line,
        "endColumn": span.end_column,
    }


def _uri(span: Span, cwd: Path | None) -> str:
    # As bytes: a file name need not be text.
    return quote(os.fsencode(Path(display_name(span.source, cwd)).as_posix()))
