"""Text that is no YAML because it belongs to another program or keyboard: merge conflicts, templates, punctuation."""

from __future__ import annotations

import re

from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import SourceFile, Span

_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})(?= |$)", re.MULTILINE)
_TEMPLATE = re.compile(r"\$\{[^}\n]*\}|\{\{[^}\n]*\}\}|<%[^\n]*?%>|\{%[^\n]*?%\}")
_PUNCTUATION = dict(zip("،，、；؛：［］｛｝", ",,,,,:[]{}", strict=True))
"""Marks of other keyboards, and those of YAML that they stand for."""


def foreign_text(source: SourceFile, offsets: tuple[int, ...]) -> Diagnostic | None:
    """What is on the lines of the offsets, or anywhere for a merge conflict; None if it is YAML as far as this goes.

    Args:
        source: A text that the parser gave up at.
        offsets: Where it noticed, and where what it was reading began.
    """
    if (conflict := _CONFLICT.search(source.text)) is not None and "<<<<<<<" in source.text:
        help_ = "choose one side, and take out the lines with `<<<<<<<`, `=======` and `>>>>>>>`"
        return _say(source, "a git merge conflict is left in the file", conflict.start(), conflict.end(), help_)
    for line in sorted({source.line_of(min(offset, len(source.text))) for offset in offsets}):
        start, text = source.line_starts[line], source.line_text(line).partition(" #")[0]
        if (template := _TEMPLATE.search(text)) is not None:
            help_ = "there are no templates here: write the value, or set it with `--set KEY=VALUE`"
            return _say(source, "a template", start + template.start(), start + template.end(), help_)
        for at, character in enumerate(text):
            if (plain := _PUNCTUATION.get(character)) is not None:
                message = f"U+{ord(character):04X} is no `{plain}`"
                return _say(source, message, start + at, start + at + 1, f"write `{plain}`")
    return None


def _say(source: SourceFile, problem: str, start: int, end: int, help_: str) -> Diagnostic:
    return Diagnostic("HC002", f"not valid YAML: {problem}", Label(Span(source, start, end)), help=help_)
