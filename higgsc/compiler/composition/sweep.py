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

from higgsc.compiler.composition.override import put
from higgsc.compiler.composition.sweep_axes import Axis, axes_of
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.source import Node

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


def expand(tree: Node, sink: Sink) -> tuple[Point, ...]:
    """All points of the tree's sweep; one nameless point for a spec without."""
    sweep = tree.get("sweep")
    base = _without_sweep(tree)
    if sweep is None or sweep.value is None:
        return (Point("", base, ()),)
    before = sink.error_count
    axes = axes_of(sweep, base, sink)
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


def _point(stem: str, base: Node, axes: list[Axis], rows: tuple[tuple[Node, ...], ...], sink: Sink) -> Point:
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
