"""The axes of a sweep: which keys change, over which values, and what is wrong with how it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.position import COMMAND_LINE, Span
from higgsc.compiler.reading.source import Node
from higgsc.compiler.words.keys import bare_key

MAX_KEYS = 100
MAX_KEY_TEXT = 1000
_FIXED = {
    "apiVersion": "write a spec for each, and `extends` what they share",
    "extends": "write a spec for each, and `extends` what they share",
    "name": "take it out: each point is named after its values",
    "output": "take it out: each point gets a folder of its own below `output`",
    "site": "choose one with `site: NAME` in the spec or `--site NAME` on the command line",
    "site.profile": "choose one with `site: NAME` in the spec or `--site NAME` on the command line",
    "sweep": "give each key of the sweep a line of its own",
}
"""Keys that have done their work, or get their value, when the points are made: a sweep over them does nothing."""
_FROM_TO = re.compile(r"\s*([0-9][0-9.eE]*(?:[eE][-+])?[0-9]*)\s*(?:\.\.+|…|:| to | - )\s*([0-9][0-9.eE+-]*)\s*")
"""A range: `1e-4..2e-4`, `8 to 64`."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Keys that change together, and their values."""

    keys: tuple[tuple[tuple[str, Span], ...], ...]
    """Each key as the words of its path with their places."""
    rows: tuple[tuple[Node, ...], ...]
    """For each value of the axis, one node for each key."""


def axes_of(sweep: Node, base: Node, sink: Sink) -> list[Axis]:
    """The axes of a sweep that is in order; what is wrong goes to `sink`.

    Args:
        sweep: The value of `sweep`.
        base: The spec without it.
        sink: Takes the diagnostics.
    """
    if not isinstance(sweep.value, Mapping) or not sweep.value:
        message = "a sweep is a mapping of keys to lists of values"
        sink.add(Diagnostic("HC203", message, Label(sweep.span), help=_as_sweep(sweep, base)))
        return []
    if len(sweep.value) > MAX_KEYS:
        message = f"the sweep has {len(sweep.value):,} keys; the most is {MAX_KEYS}"
        sink.add(Diagnostic("HC203", message, Label(sweep.place), help="keys with one value each belong into the spec"))
        return []
    axes: list[Axis] = []
    swept: dict[str, Node] = {}
    for text, node in sweep.value.items():
        keys = tuple(key.strip() for key in text.split(","))
        wrong = _unsweepable(text, keys, node) or _not_values(text, keys, node) or _again(keys, node, swept)
        if wrong is None:
            placed = tuple(_placed(key, node.place) for key in keys)
            axes.append(Axis(placed, tuple(_row(entry, keys) for entry in _entries(node))))
            found = [bare for words in placed if (bare := bare_key(*words[0], alone=len(words) == 1)) is not None]
            found += [
                diagnostic for words in placed if (diagnostic := _overridden(base, words, node.place)) is not None
            ]
        else:
            found = [wrong]
        for diagnostic in found:
            sink.add(diagnostic)
        swept.update(dict.fromkeys(keys, node))
    return axes


def _entries(node: Node) -> tuple[Node, ...]:
    assert isinstance(node.value, tuple)
    return node.value


def _row(entry: Node, keys: tuple[str, ...]) -> tuple[Node, ...]:
    return (entry,) if len(keys) == 1 else _entries(entry)


def _unsweepable(text: str, keys: tuple[str, ...], node: Node) -> Diagnostic | None:
    """For a key that no sweep can have."""
    if len(text) > MAX_KEY_TEXT:
        message = f"a key of {len(text):,} characters is none of a spec"
        return Diagnostic("HC203", message, Label(node.place), help="write `training.learning_rate: [1e-4, 2e-4]`")
    for key in keys:
        fixed = key if key in _FIXED else key.split(".")[0]
        if key in _FIXED or fixed in ("extends", "sweep"):
            return Diagnostic("HC203", f"`{key}` cannot be swept", Label(node.place), help=_FIXED[fixed])
    return None


def _not_values(text: str, keys: tuple[str, ...], node: Node) -> Diagnostic | None:
    """For what is no list of values, one for each key."""
    if not isinstance(node.value, tuple) or not node.value:
        message = f"`{text}` has to be swept over a list of values"
        return Diagnostic("HC203", message, Label(node.span), help=_as_list(text, node))
    if len(keys) > 1:
        count = f"each value of `{text}` is a list of {len(keys)}"
        for entry in node.value:
            if not isinstance(entry.value, tuple):
                listed = ", ".join(f"[{each.span.text}, …]" for each in node.value[:3])
                help_ = f"write a value for each key: `[{listed}]`"
                shown = entry.span.text if not isinstance(entry.value, Mapping) else "a mapping"
                return Diagnostic("HC203", f"{count}, one for each key, not `{shown}`", Label(entry.span), help=help_)
            if len(entry.value) != len(keys):
                missing = [f"`{key}`" for key in keys[len(entry.value) :]]
                found = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing here"
                message = f"{count}; {found if missing else f'not of {len(entry.value)}'}"
                help_ = f"write one value for each key, in the order {', '.join(keys)}"
                return Diagnostic("HC203", message, Label(entry.span), help=help_)
    return _same_values(text, node.value)


def _same_values(text: str, entries: tuple[Node, ...]) -> Diagnostic | None:
    """For a value that stands there twice: the same training would run under two names."""
    seen: dict[object, Node] = {}
    for entry in entries:
        first = seen.setdefault(_comparable(entry.plain()), entry)
        if first is not entry:
            return Diagnostic(
                "HC203",
                f"`{text}` has the same value twice",
                Label(entry.span, "again here"),
                secondary=(Label(first.span, "first here"),),
                help="keep one of the two",
            )
    return None


def _comparable(value: object) -> object:
    """Equal for `1e-4` and `0.0001`, and for 1 and 1.0, but not for 1 and true."""
    if isinstance(value, tuple):
        return tuple(_comparable(each) for each in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return repr(value)


def _again(keys: tuple[str, ...], node: Node, swept: Mapping[str, Node]) -> Diagnostic | None:
    """For a key that another axis, or this one, has already."""
    for index, key in enumerate(keys):
        other = node if key in keys[:index] else swept.get(key)
        if other is not None:
            secondary = (Label(other.place, "first here"),) if other is not node else ()
            message = f"`{key}` is swept twice, so that one of the two would do nothing"
            return Diagnostic("HC203", message, Label(node.place), secondary, help="keep one of the two")
    return None


def _overridden(base: Node, words: tuple[tuple[str, Span], ...], place: Span) -> Diagnostic | None:
    """For a key that the command line sets as well: the sweep's values would win without a word."""
    given, rest = base.find(tuple(word for word, _ in words))
    if rest or given.span.source.name != COMMAND_LINE:
        return None
    key = ".".join(word for word, _ in words)
    return Diagnostic(
        "HC202",
        f"`{key}` is swept, so that the override has no effect",
        Label(given.place),
        secondary=(Label(place, "swept here"),),
        help="leave the override out, or switch the sweep off with `--set sweep=null`",
    )


def _as_sweep(sweep: Node, base: Node) -> str:
    """How to write a sweep that is no mapping: with the keys that it names, if the spec gives each of them."""
    named = sweep.value if isinstance(sweep.value, tuple) and sweep.value else (sweep,)
    given = {entry.value: base.at(entry.value) for entry in named if isinstance(entry.value, str)}
    tried = {key: _to_try(node) for key, node in given.items() if node is not None}
    if len(tried) < len(named) or not all(tried.values()):
        return "write `sweep: {training.learning_rate: [1e-4, 2e-4]}`"
    axes = ", ".join(f"{key}: {values}" for key, values in tried.items())
    return f"write `sweep: {{{axes}}}`, with the values to try"


def _to_try(node: Node) -> str | None:
    """A list with a scalar of the spec in it, and half of a number: half of what is allowed mostly is, too."""
    value, written = node.value, node.span.text
    if value is None or isinstance(value, Mapping | tuple) or len(written) > 40:
        return None
    if isinstance(value, bool):
        return "[false, true]"
    if isinstance(value, int | float) and value > 0 and (value / 2).is_integer() | isinstance(value, float):
        return f"[{value / 2:g}, {written}]" if isinstance(value, float) else f"[{value // 2}, {written}]"
    return f"[{written}]"


def _as_list(text: str, node: Node) -> str:
    """How to write the values of an axis that are no list."""
    value, written = node.value, node.span.text
    some = "[1e-4, 2e-4]" if text.endswith("learning_rate") else "[1, 2, 4]"
    if node.value == ():
        return "give it one value at least"
    if isinstance(value, Mapping) and value:
        inner, values = next(iter(value.items()))
        if inner == "values" and isinstance(values.value, tuple):
            return f"write `{text}: {values.span.text}`"
        if inner in ("min", "max", "start", "stop", "from", "to", "low", "high", "step", "distribution"):
            return f"list the values one by one: `{text}: {some}`"
        return f"join the keys with a point: `{text}.{inner}: {values.span.text}`"
    if isinstance(value, str) and (ends := _FROM_TO.fullmatch(value)):
        return f"list the values one by one: `{text}: [{ends[1]}, {ends[2]}]`"
    if isinstance(value, str) and "," in value and not re.search(r"[()]", value):
        return f"write `{text}: [{value}]`"
    if value is None or (isinstance(value, str) and re.search(r"[()\s]", value)):
        return f"list the values one by one: `{text}: {some}`"
    return f"write `{text}: [{written}]`"


def _placed(key: str, whole: Span) -> tuple[tuple[str, Span], ...]:
    """The words of a dotted key, each with its place inside the key of the sweep."""
    placed, start = [], whole.start
    for word in key.split("."):
        at = whole.source.text.find(word, start, whole.end) if word else -1
        span = Span(whole.source, at, at + len(word)) if at >= 0 else whole
        placed.append((word, span))
        start = span.end if at >= 0 else start
    return tuple(placed)
