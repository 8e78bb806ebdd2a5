"""How large a spec may be, and how deep: checked before the parser builds anything."""

from __future__ import annotations

import re

import yaml

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.position import SourceFile, Span

MAX_DEPTH = 64
MAX_NODES = 20_000


def within_limits(source: SourceFile, sink: Sink) -> bool:
    """Whether the text is small and shallow enough for `yaml.compose`, and free of tags; else a diagnostic.

    `yaml.compose` recurses in C, so that deep brackets would end the process; and it takes seconds for a megabyte
    of commas. The events come one by one, and nothing after the first too many is read.
    """
    depth = count = 0
    for event in yaml.parse(source.text, Loader=yaml.CSafeLoader):
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        mark = event.start_mark
        start = source.offset(mark.line, mark.column) if mark is not None else 0
        place = Label(Span(source, start, min(start + 1, len(source.text))))
        if depth > MAX_DEPTH:
            sink.add(too_much(f"{MAX_DEPTH} levels", place))
            return False
        if count > 2 * MAX_NODES:  # a key and a value each; what aliases unfold to is counted later
            sink.add(too_much(f"{MAX_NODES:,} values", place))
            return False
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            # The event starts at the anchor if there is one.
            tag = re.compile(r"![^\s,\[\]{}]*").search(source.text, start)
            span = Span(source, tag.start(), tag.end()) if tag else place.span
            help_ = "take it out, and write a string in quotes; a string that starts with `!` needs quotes too"
            sink.add(Diagnostic("HC007", f"a spec has no tags such as `{span.text}`", Label(span), help=help_))
            return False
    return True


def too_much(limit: str, place: Label) -> Diagnostic:
    help_ = "a spec is written by hand; move data into a file of its own"
    return Diagnostic("HC006", f"the spec unfolds to more than {limit}", place, help=help_)
