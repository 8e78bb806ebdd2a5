"""The way out of a value that is no hardware shape. What is not certain is not guessed."""

from __future__ import annotations

import re

from higgsc.compiler.reading.source import Node
from higgsc.compiler.words.hint import Hint
from higgsc.spec.hardware import shape_in

_FILLERS = re.compile(r"(?i)\b(nvidia|tesla|geforce|gpus?|cards?|nodes?|machines?|of|with|each|à|@)(?![a-z])")
_TYPE = r"rtx *[0-9]{4}|cpu|[a-wyz][a-wyz]*[0-9]+[a-wyz]*(?:[ _-]?[0-9]{2} ?gb?(?![a-z]))?"
_PART = re.compile(rf"(?P<type>{_TYPE})|(?P<count>[0-9]+)(?![0-9])|(?P<between>[x×*:,\s]+)")
_CARDS = {"3090": "RTX3090", "4090": "RTX4090", "5090": "RTX5090"}
"""Cards that go by their number."""


def for_hardware(node: Node) -> Hint:
    """For a value that is no hardware shape."""
    value = node.value
    if value is None:
        return Hint("write a shape, such as `8xH200`")
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 128:
        return Hint(f"write `{value}xH200`, or `1x{value}` if the type does not matter")
    if not isinstance(value, str):
        return Hint()
    parts = _parts(value)
    if parts is None:
        return Hint()
    counts, types = parts
    if len(types) == 1 and not counts and types[0] != "CPU":
        return Hint(f"write how many as well: `8x{types[0]}`")
    if len(counts) == 1 and not types:
        return Hint(f"write `{counts[0]}xH200`, or `1x{counts[0]}` if the type does not matter")
    shape = "x".join([*(counts or ["1"]), *types])
    if len(types) > 1 or len(counts) > 2 or shape_in(shape) is None:
        return Hint()
    same = re.sub(r"\s+", "", value).replace("×", "x").replace("*", "x").casefold() == shape.casefold()
    same = same or (types == ["CPU"] and not counts)
    return Hint(f"write `{shape}`", shape if same else None)


def replaced_shape(node: Node, below: str) -> str | None:
    """For a mapping without its GPUs that stands where a short form was inherited: the short form of both."""
    shape, nodes, gpu = shape_in(below), node.get("nodes"), node.get("gpu")
    if shape is None:
        return None
    count = nodes.span.text if nodes is not None else shape[1] or "1"
    kind = gpu.span.text if gpu is not None else shape[3]
    whole = "x".join([count, shape[2], *([kind] if kind else [])])
    return f"the inherited `{below}` is replaced as a whole: write `hardware: {whole}`" if shape_in(whole) else None


def _parts(text: str) -> tuple[list[str], list[str]] | None:
    """The counts and GPU types in a text; None if it holds anything else."""
    text, at = _FILLERS.sub(" ", text).casefold().strip(), 0
    counts: list[str] = []
    types: list[str] = []
    while at < len(text):
        match = _PART.match(text, at)
        if match is None:
            return None
        if match["type"]:
            types.append(_type(match["type"]))
        elif match["count"] in _CARDS:
            types.append(_CARDS[match["count"]])
        elif match["count"]:
            counts.append(match["count"])
        at = match.end()
    return counts, types


def _type(text: str) -> str:
    """A GPU type as the catalog writes it: `A100 80GB` is `A100-80GB`, `rtx 4090` is `RTX4090`."""
    if sized := re.fullmatch(r"([a-z]+[0-9]+)[ _-]?([0-9]{2}) ?gb?", text):
        return f"{sized[1]}-{sized[2]}GB".upper()
    return text.replace(" ", "").upper()
