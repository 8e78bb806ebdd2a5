"""Machine-applicable fixes: edit the text of a spec, and nothing but the places that are wrong."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from higgsc.compiler.diagnostics import Diagnostic, Edit
from higgsc.compiler.reading.position import COMMAND_LINE, SourceFile


def apply_fixes(diagnostics: tuple[Diagnostic, ...]) -> dict[Path, int]:
    """Write the fixes into their files; comments, order and everything else stay as they are.

    Returns:
        How many fixes went into which file.
    """
    edits: dict[SourceFile, list[Edit]] = defaultdict(list)
    for diagnostic in diagnostics:
        if diagnostic.fix is not None and diagnostic.fix.span.source.name != COMMAND_LINE:
            edits[diagnostic.fix.span.source].append(diagnostic.fix)
    counts = {}
    for source, found in edits.items():
        text, count = source.text, 0
        # From the end of the file, so that earlier places keep their offsets; of two that overlap, the later wins.
        limit = len(text)
        for edit in sorted(found, key=lambda edit: edit.span.start, reverse=True):
            if edit.span.end <= limit:
                text = text[: edit.span.start] + edit.text + text[edit.span.end :]
                limit, count = edit.span.start, count + 1
        source.path.write_text(text, "utf-8", newline="")
        counts[source.path] = count
    return counts
