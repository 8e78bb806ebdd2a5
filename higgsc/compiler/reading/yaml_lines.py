"""The lines around a mistake in YAML text: what their indentation says about it."""

from __future__ import annotations

import re

from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import SourceFile, Span


def say(source: SourceFile, problem: str, start: int, end: int, help: str, opened: int | None = None) -> Diagnostic:
    start = min(start, len(source.text))
    secondary = (Label(Span(source, opened, opened), "noticed here"),) if opened is not None else ()
    span = Span(source, start, max(start, min(end, len(source.text))))
    return Diagnostic("HC002", f"not valid YAML: {problem}", Label(span), secondary, help=help)


def raw_line(source: SourceFile, offset: int) -> tuple[int, str]:
    """The start and text of the line that holds an offset, secrets included."""
    line = source.line_of(offset)
    return source.line_starts[line], source.line_text(line)


def line_above(source: SourceFile, at: int) -> tuple[int, str] | None:
    """The start and text of the nearest line above that holds more than a comment."""
    for line in range(source.line_of(at) - 1, -1, -1):
        start, text = raw_line(source, source.line_starts[line])
        if text.strip() and not text.lstrip().startswith("#"):
            return start, text
    return None


def indentation(source: SourceFile, problem: str, at: int) -> Diagnostic | None:
    start, line = raw_line(source, at)
    indent = len(line) - len(line.lstrip())
    if "expected key" in problem and line[indent : indent + 2] == "- " and at == start + indent:
        help_ = "indent it below the key of the list, or write `key: [a, b]`"
        return say(source, "an entry of a list between keys", at, start + len(line.rstrip()), help_)
    above = line_above(source, at)
    if above is None or not ("mapping values" in problem or "expected key" in problem or "expected '-'" in problem):
        return None
    if "expected '-'" in problem:
        return say(
            source,
            "a key between the entries of a list",
            start + indent,
            start + len(line.rstrip()),
            "start the line with `- `, or indent it like the key of the list",
        )
    if "mapping values" not in problem and start + indent != at:
        return None
    if (lost := _lost(source, at, indent)) is not None:
        return lost
    levels: list[int] = []
    line_number = source.line_of(at)
    while line_number > 0 and (not levels or levels[-1] > 0):
        line_number -= 1
        _, text = raw_line(source, source.line_starts[line_number])
        depth = len(text) - len(text.lstrip())
        if text.strip() and not text.lstrip().startswith("#") and (not levels or depth < levels[-1]):
            levels.append(depth)
    if indent in levels or not levels:
        return None
    if (deeper := _meant_level(source, at, indent)) is not None:
        ways, found = f"{deeper} spaces", f"indented by {indent}, unlike the lines around it"
        return say(source, found, start + indent, start + len(line.rstrip()), f"indent it by {ways}")
    nearest = sorted(levels, key=lambda level: abs(level - indent))[:2]
    ways = " or ".join(f"{level} space{'' if level == 1 else 's'}" for level in sorted(nearest, reverse=True))
    found = f"indented by {indent}, unlike the lines above"
    return say(source, found, start + indent, start + len(line.rstrip()), f"indent it by {ways}")


def _meant_level(source: SourceFile, at: int, indent: int) -> int | None:
    """The indentation of the lines directly above and below, if they agree and lie near the odd one's."""
    below = next(
        (
            text
            for line in range(source.line_of(at) + 1, len(source.line_starts))
            if (text := raw_line(source, source.line_starts[line])[1]).strip() and not text.lstrip().startswith("#")
        ),
        "",
    )
    above = line_above(source, at)
    depths = {len(text) - len(text.lstrip()) for text in (below, above[1] if above else "")}
    return depths.pop() if len(depths) == 1 and min(depths) > 0 and abs(min(depths) - indent) <= 1 else None


def _lost(source: SourceFile, at: int, indent: int) -> Diagnostic | None:
    """For a line above whose indentation was lost: the lines around it agree on another one."""
    if (above := line_above(source, at)) is None or (before := line_above(source, above[0])) is None:
        return None
    depth = len(above[1]) - len(above[1].lstrip())
    key = re.match(r"\s*([\w.-]+):", above[1])
    if key is None or len(before[1]) - len(before[1].lstrip()) != indent or depth >= indent:
        return None
    lines = f"line {source.line_of(above[0]) + 1} has lost its indentation"
    help_ = f"indent `{key[1]}` by {indent} spaces, like the lines around it"
    return say(source, lines, above[0] + depth, above[0] + len(above[1].rstrip()), help_)
