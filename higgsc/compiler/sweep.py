"""Sweeps: one spec, several points, a plan for each.

sweep:
  training.learning_rate: [1e-4, 2e-4]        # two keys: their product, four points
  lora.rank, lora.alpha: [[16, 32], [64, 128]]  # one key with commas: values that change together
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.keys import bare_key
from higgsc.compiler.override import put
from higgsc.compiler.position import Span
from higgsc.compiler.source import Node

MAX_POINTS = 10_000
MAX_KEYS = 100
MAX_KEY_TEXT = 1000
MAX_NAME = 64
_FIXED = ("apiVersion", "extends", "name", "site", "sweep")
"""Keys that have done their work, or get their value, when the points are made: a sweep over them does nothing."""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of a sweep's values."""

    name: str
    """`<name of the spec>-<last word of the key>-<value>…`; the same for the same values, whatever else is swept."""
    tree: Node
    """The spec with these values put in and the sweep taken out."""
    values: tuple[tuple[str, str], ...]
    """Key and value, as written."""


@dataclass(frozen=True, slots=True)
class _Axis:
    keys: tuple[tuple[tuple[str, Span], ...], ...]
    """Keys that change together, each as the words of its path with their places."""
    rows: tuple[tuple[Node, ...], ...]
    """For each value of the axis, one node for each key."""


def expand(tree: Node, sink: Sink) -> tuple[Point, ...]:
    """All points of the tree's sweep; one nameless point for a spec without."""
    sweep = tree.get("sweep")
    base = _without_sweep(tree)
    if sweep is None or sweep.value is None:
        return (Point("", base, ()),)
    before = sink.error_count
    axes = _axes(sweep, sink)
    if sink.error_count > before:
        return ()
    total = 1
    for axis in axes:
        total *= len(axis.rows)
        if total > MAX_POINTS:
            message = f"the sweep has {total:,} points or more; the most is {MAX_POINTS:,}"
            sink.add(Diagnostic("HC203", message, Label(sweep.place), help="sweep fewer keys or values at once"))
            return ()
    name = base.get("name")
    stem = name.value if name is not None and isinstance(name.value, str) else ""
    points = [_point(stem, base, axes, rows, sink) for rows in product(*(axis.rows for axis in axes))]
    return _with_distinct_names(points, stem)


def _axes(sweep: Node, sink: Sink) -> list[_Axis]:
    if not isinstance(sweep.value, Mapping) or not sweep.value:
        sink.add(
            Diagnostic(
                "HC203",
                "a sweep is a mapping of keys to lists of values",
                Label(sweep.span),
                help="write `sweep: {training.learning_rate: [1e-4, 2e-4]}`",
            )
        )
        return []
    if len(sweep.value) > MAX_KEYS:
        message = f"the sweep has {len(sweep.value):,} keys; the most is {MAX_KEYS}"
        sink.add(Diagnostic("HC203", message, Label(sweep.place), help="keys with one value each belong into the spec"))
        return []
    axes, swept = [], set[str]()
    for text, node in sweep.value.items():
        keys = tuple(key.strip() for key in text.split(","))
        if len(text) > MAX_KEY_TEXT:
            message = f"a key of {len(text):,} characters is none of a spec"
            sink.add(
                Diagnostic("HC203", message, Label(node.place), help="write `training.learning_rate: [1e-4, 2e-4]`")
            )
            continue
        if fixed := [key for key in keys if key in _FIXED or key.startswith(("extends.", "sweep."))]:
            message, ways = f"`{fixed[0]}` cannot be swept", "write a spec for each, and `extends` what they share"
            sink.add(Diagnostic("HC203", message, Label(node.place), help=ways))
            continue
        if not isinstance(node.value, tuple) or not node.value:
            message = f"`{text}` has to be swept over a list of values"
            sink.add(Diagnostic("HC203", message, Label(node.span), help=_as_list(text, node)))
            continue
        rows = []
        for entry in node.value:
            row = (entry,) if len(keys) == 1 else entry.value
            if not isinstance(row, tuple) or len(row) != len(keys):
                sink.add(
                    Diagnostic(
                        "HC203",
                        f"each value of `{text}` is a list of {len(keys)}, one for each key",
                        Label(entry.span),
                        help=f"write `[{', '.join(['…'] * len(keys))}]` for it",
                    )
                )
                continue
            rows.append(row)
        if twice := [key for key in keys if key in swept or keys.count(key) > 1]:
            message = f"`{twice[0]}` is swept twice, so that one of the two would do nothing"
            sink.add(Diagnostic("HC203", message, Label(node.place), help="keep one of the two"))
            continue
        swept.update(keys)
        placed = tuple(_placed(key, node.key_span or node.span) for key in keys)
        bare = [found for words in placed if (found := bare_key(*words[0], alone=len(words) == 1)) is not None]
        for each in bare:
            sink.add(each)
        if not bare:
            axes.append(_Axis(placed, tuple(rows)))
    return axes


def _as_list(text: str, node: Node) -> str:
    if isinstance(node.value, Mapping) and node.value:
        inner, values = next(iter(node.value.items()))
        return f"join the keys with a point: `{text}.{inner}: {values.span.text}`"
    if isinstance(node.value, str) and "," in node.value:
        return f"write `{text}: [{node.value}]`"
    return f"write `{text}: [{node.span.text or '1, 2'}]`" if node.value != () else "give it one value at least"


def _placed(key: str, whole: Span) -> tuple[tuple[str, Span], ...]:
    """The words of a dotted key, each with its place inside the key of the sweep."""
    placed, start = [], whole.start
    for word in key.split("."):
        at = whole.source.text.find(word, start, whole.end) if word else -1
        span = Span(whole.source, at, at + len(word)) if at >= 0 else whole
        placed.append((word, span))
        start = span.end if at >= 0 else start
    return tuple(placed)


def _point(stem: str, base: Node, axes: list[_Axis], rows: tuple[tuple[Node, ...], ...], sink: Sink) -> Point:
    tree, words, values = base, [stem], []
    for axis, row in zip(axes, rows, strict=True):
        for key, node in zip(axis.keys, row, strict=True):
            tree = put(tree, list(key), node, sink)
            words.append(f"{key[-1][0]}-{_word(node)}")
            values.append((".".join(word for word, _ in key), node.span.text))
    return Point("-".join(words), tree, tuple(values))


def _word(node: Node) -> str:
    """A value as part of a name: as written, other characters than those of names as `-`."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", node.span.text).strip("-")


def _with_distinct_names(points: list[Point], stem: str) -> tuple[Point, ...]:
    """Names that are too long, or equal, are replaced by numbers: `<stem>-007`."""
    names = [point.name for point in points]
    if len(set(names)) < len(names) or max(map(len, names)) > MAX_NAME:
        width = len(str(len(points) - 1))
        points = [replace(point, name=f"{stem}-{index:0{width}}") for index, point in enumerate(points)]
    return tuple(replace(point, tree=_renamed(point.tree, point.name)) for point in points)


def _renamed(tree: Node, name: str) -> Node:
    assert isinstance(tree.value, Mapping)
    old = tree.value.get("name")
    return replace(tree, value={**tree.value, "name": replace(old, value=name)}) if old is not None else tree


def _without_sweep(tree: Node) -> Node:
    assert isinstance(tree.value, Mapping)
    return replace(tree, value={key: node for key, node in tree.value.items() if key != "sweep"})
