"""Tags such as `!!int` or `!env`: a spec has none, and each kind has another way out."""

from __future__ import annotations

import re

import yaml

from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import SourceFile, Span

_CORE = "tag:yaml.org,2002:"
_FORMS = {
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
    "bool": r"true|false",
    "null": r"null",
}
"""Scalars that have these types without a tag."""


def tagged(source: SourceFile, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> Diagnostic:
    """The diagnostic for a value with a tag."""
    start = place_of(source, event).start
    # The event starts at the anchor if there is one.
    tag = re.compile(r"![^\s,\[\]{}]*").search(source.text, start)
    span = Span(source, tag.start(), tag.end()) if tag else Span(source, start, min(start + 1, len(source.text)))
    path = _path_to(source, start)
    message = f"a spec has no tags such as `{span.text}`"
    return Diagnostic("HC007", message, Label(span), help=_way_out(event, span.text, path))


def _way_out(event: yaml.ScalarEvent | yaml.CollectionStartEvent, written: str, path: tuple[str, ...] | None) -> str:
    kind = str(event.tag).removeprefix(_CORE)
    word = written.lstrip("!").lower()
    if re.match(r"env|expand", word):
        option = f"--set {'.'.join(path)}=…" if path else "--set KEY=VALUE"
        return f"nothing is read from the environment: write the value, or take the line out and give `{option}`"
    if word.startswith("include"):
        return "write it out here; what several specs share goes into a file of its own, named in `extends`"
    if not isinstance(event, yaml.ScalarEvent):
        return f"take `{written}` out: what follows is taken as it is written"
    text = str(event.value)
    key = f"{path[-1]}: " if path else ""
    short = re.fullmatch(r"[^\n\"\\]{1,60}", text) is not None
    if kind in _FORMS and re.fullmatch(_FORMS[kind], text):
        return f"write `{key}{text}`"
    if kind == "str" and short:
        return f'write `{key}"{text}"`'
    if kind != str(event.tag) or not short:
        return f"take `{written}` out"
    return f'take `{written}` out; if it is part of the text, write `{key}"{written} {text}"`'


def _path_to(source: SourceFile, place: int) -> tuple[str, ...] | None:
    """The keys above the value that starts at an offset; None in a list, which `--set` does not reach into."""
    # An open mapping has its current key, or None where a key is due; a list has the empty string.
    opened: list[str | None] = []
    for event in yaml.parse(source.text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            opened.pop()
            if opened and opened[-1] is None:
                opened[-1] = "?"  # a key that is no word
            else:
                _next(opened)
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if place_of(source, event).start >= place:
            return tuple(key for key in opened if key) if all(opened) else None
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(None if isinstance(event, yaml.MappingStartEvent) else "")
        elif opened and opened[-1] is None:
            opened[-1] = str(event.value) if isinstance(event, yaml.ScalarEvent) else "?"
        else:
            _next(opened)
    return None


def _next(opened: list[str | None]) -> None:
    """A value has ended: in a mapping, a key is due."""
    if opened and opened[-1] != "":
        opened[-1] = None


def place_of(source: SourceFile, event: yaml.Event) -> Span:
    """Where a parser's event stands. Its marks are typed as optional; the parser always sets both."""
    marks = (event.start_mark, event.end_mark)
    start, end = (0 if mark is None else source.offset(mark.line, mark.column) for mark in marks)
    return Span(source, start, end)
