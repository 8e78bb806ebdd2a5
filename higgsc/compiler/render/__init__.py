"""Diagnostics for people (`text`, `concise`) and for programs (`json`, `sarif`, `github`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from higgsc.compiler.diagnostics import Diagnostic

Format = Literal["text", "concise", "json", "sarif", "github"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(diagnostics: tuple[Diagnostic, ...], form: Format, *, cwd: Path | None = None, colour: bool = False) -> str:
    """Diagnostics in one of the forms; file names relative to `cwd` where they lie below it."""
    match form:
        case "text":
            from higgsc.compiler.render.text import render_text

            return render_text(diagnostics, cwd=cwd, colour=colour)
        case "concise":
            from higgsc.compiler.render.lines import render_concise

            return render_concise(diagnostics, cwd)
        case "github":
            from higgsc.compiler.render.lines import render_github

            return render_github(diagnostics, cwd)
        case "json":
            from higgsc.compiler.render.json import render_json

            return render_json(diagnostics, cwd)
        case "sarif":
            from higgsc.compiler.render.sarif import render_sarif

            return render_sarif(diagnostics, cwd)
