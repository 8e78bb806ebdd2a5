"""Where a value came from: a place in a file, the command line, a pass, or the default of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from higgsc.compiler.ir import Derived, Ir
from higgsc.compiler.reading.source import NodePath


@dataclass(frozen=True, slots=True)
class Origin:
    """Why a value is what it is."""

    place: str | None = None
    """`specs/arabic.yaml:11:27` or `--set lora.rank=16`; None for a default and for a derived value."""
    derived: Derived | None = None

    def __str__(self) -> str:
        if self.derived is not None:
            return f"derived: {self.derived.formula} ({self.derived.by})"
        return self.place or "default"


def values_of(ir: Ir) -> dict[str, Any]:
    """Every value of the spec with defaults and derived ones filled in, as nested mappings."""
    values = ir.spec.model_dump(exclude={"extends", "sweep"})
    for path, derived in ir.derived.items():
        *parents, last = path.split(".")
        inner = values
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = derived.value
    return values


def leaves(value: Any, path: NodePath = ()) -> dict[NodePath, Any]:
    """The scalars (and empty collections) of nested mappings and tuples, by path."""
    if isinstance(value, Mapping | tuple) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {inner: leaf for key, child in items for inner, leaf in leaves(child, (*path, key)).items()}
    return {path: value}


def origin_of(ir: Ir, path: NodePath) -> Origin:
    """Where the value at a path came from."""
    node, rest = ir.tree.find(path)
    derived = ir.derived.get(dotted(path)) or ir.derived.get(dotted(path[:-1]))
    if derived is not None:
        if not rest and node.plain() == derived.value:
            return Origin(place=str(node.span))
        return Origin(derived=derived)
    # A short form such as `8xH200` stands for several values: they all come from its place.
    if not rest or (len(rest) < len(path) and not isinstance(node.value, Mapping | tuple)):
        return Origin(place=str(node.span))
    return Origin()


def explain(ir: Ir, path: str, *, depth: int = 0) -> list[str] | None:
    """The chain behind a value, a line each; None if the spec has no such value."""
    keys: NodePath = tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in path.split("."))
    value: Any = values_of(ir)
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    pad = "  " * depth
    if isinstance(value, Mapping) and value:
        return [line for key in value for line in explain(ir, f"{path}.{key}", depth=depth) or ()]
    origin = origin_of(ir, keys)
    lines = [f"{pad}{path} = {shown(value)}"]
    if origin.derived is not None:
        lines.append(f"{pad}  derived by {origin.derived.by}: {origin.derived.formula}")
        for source in origin.derived.inputs:
            lines += explain(ir, source, depth=depth + 2) or ()
        return lines
    lines.append(f"{pad}  {origin}")
    node, rest = ir.tree.find(keys)
    while not rest and node.below is not None:
        node = node.below
        lines.append(f"{pad}  instead of {shown(node.plain())}  {node.span}")
    return lines


def known_paths(ir: Ir) -> list[str]:
    """Every path that `explain` answers to, for suggestions."""
    found = {dotted(path[:end]) for path in leaves(values_of(ir)) for end in range(1, len(path) + 1)}
    return sorted(found)


def dotted(path: NodePath) -> str:
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """A value as it is written in a spec."""
    if isinstance(value, tuple):
        return f"[{', '.join(shown(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(entry)}" for key, entry in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
