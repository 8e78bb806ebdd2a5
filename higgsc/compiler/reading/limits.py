"""How large a spec may be, and how deep: checked before the parser builds anything."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.position import SourceFile, Span
from higgsc.compiler.reading.tags import place_of, tagged

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
        start = place_of(source, event).start
        place = Span(source, start, min(start + 1, len(source.text)))
        if depth > MAX_DEPTH:
            sink.add(too_much(f"{MAX_DEPTH} levels", place, None))
            return False
        if count > 2 * MAX_NODES:  # a key and a value each; what aliases unfold to is counted later
            sink.add(too_much(f"{MAX_NODES:,} values", place, None))
            return False
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            sink.add(tagged(source, event))
            return False
    return True


def too_much(limit: str, place: Span, alias: Span | None) -> Diagnostic:
    """For a spec past a limit.

    Args:
        limit: In words.
        place: The first value too many.
        alias: The alias that brings it in, if one does.
    """
    if alias is not None:
        help_ = "write out the values that are meant instead of this alias; a spec is written by hand"
        return Diagnostic("HC006", f"aliases unfold the spec to more than {limit}", Label(alias), help=help_)
    help_ = "a spec is written by hand; move data into a file of its own"
    return Diagnostic("HC006", f"the spec has more than {limit}", Label(place), help=help_)


@dataclass(slots=True)
class _Open:
    """A list or mapping that has begun."""

    anchor: str | None
    mapping: bool
    before: int
    """Values in front of it."""
    children: int = 0
    """Keys and values so far, to tell the one from the other."""
    height: int = 0


def overflowing_alias(source: SourceFile) -> Span | None:
    """The first alias with which the spec is past a limit once it is unfolded; None if it is without aliases."""
    values = 0
    known: dict[str, tuple[int, int]] = {}  # of an anchor: values and levels
    opened: list[_Open] = []
    for event in yaml.parse(source.text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            done = opened.pop()
            if done.anchor is not None:
                known[done.anchor] = (values - done.before, done.height)
            if opened:
                opened[-1].height = max(opened[-1].height, done.height + 1)
        if not isinstance(event, yaml.NodeEvent):
            continue
        is_key = bool(opened) and opened[-1].mapping and opened[-1].children % 2 == 0
        if opened:
            opened[-1].children += 1
        before = values
        if isinstance(event, yaml.AliasEvent):
            size, height = known.get(str(event.anchor), (MAX_NODES + 1, 0))  # inside its own anchor it has no end
            values += 0 if is_key else size
            if values > MAX_NODES or len(opened) + height > MAX_DEPTH:
                return place_of(source, event)
            if opened:
                opened[-1].height = max(opened[-1].height, height + 1)
            continue
        values += not is_key
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent), before))
        else:
            known |= {event.anchor: (1, 0)} if event.anchor is not None else {}
    return None
