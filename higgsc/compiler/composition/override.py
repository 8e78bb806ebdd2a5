"""`--set key=value` on the command line: typed like the spec, and with a place to point at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.limits import MAX_DEPTH
from higgsc.compiler.reading.position import COMMAND_LINE, SourceFile, Span
from higgsc.compiler.reading.source import Node, parse
from higgsc.compiler.words.keys import bare_key
from higgsc.spec.hardware import shape_in


def apply_overrides(tree: Node, overrides: tuple[str, ...], sink: Sink) -> Node:
    """The tree with each `key.path=value` put in; later ones win.

    The value is YAML: `lora.rank=16` is a number, `lora.heads=[audio]` a list. Whether the key exists and the type
    is right is for the schema to say; the tree only has to have mappings where the path goes.
    """
    for text in overrides:
        source = SourceFile(Path(COMMAND_LINE), COMMAND_LINE, text)
        key, equals, _ = text.partition("=")
        parts = key.strip().split(".")
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of an argument that are no UTF-8
            whole = Label(Span(source, 0, len(text)))
            sink.add(Diagnostic("HC202", "the argument is not UTF-8", whole, help="set the value in the spec"))
            continue
        if not equals or not all(parts):
            whole = Label(Span(source, 0, len(text)))
            message = f"`{text}` is not of the form key.path=value"
            colon = re.fullmatch(r"([A-Za-z_][\w.]*): ?(\S+)", text)
            help_ = f"write `--set {colon[1]}={colon[2]}`" if colon else "write `--set lora.rank=16`"
            sink.add(Diagnostic("HC202", message, whole, help=help_))
            continue
        if len(parts) > MAX_DEPTH:
            whole = Label(Span(source, 0, len(key)))
            sink.add(Diagnostic("HC202", f"the key has {len(parts):,} words; the deepest has four", whole))
            continue
        if parts[0].strip() == "extends":
            whole = Label(Span(source, 0, len(key)))
            message = "`extends` has been followed before the command line is read"
            sink.add(Diagnostic("HC202", message, whole, help="write it into the spec, or into one that extends it"))
            continue
        if (unclear := _unclear_value(source, len(key) + 1)) is not None:
            sink.add(unclear)
            continue
        placed = _spanned(source, parts)
        node = _value(source, len(key) + 1, sink)
        if (bare := bare_key(*placed[0], alone=len(placed) == 1)) is not None:
            sink.add(bare)
        elif node is not None:
            tree = put(tree, placed, node, sink)
    return tree


def put(tree: Node, keys: list[tuple[str, Span]], value: Node, sink: Sink) -> Node:
    """The tree with a value at a path, whatever was there; mappings on the way are made."""
    (name, span), *rest = keys
    if tree.value is None:
        tree = replace(tree, value={})
    if not isinstance(tree.value, Mapping):
        sink.add(
            Diagnostic(
                "HC202",
                f"`{name}` cannot be set inside a value that is not a mapping",
                Label(span),
                secondary=(Label(tree.span, "this value"),),
                help=_whole_value(name, tree, value),
            )
        )
        return tree
    below = tree.value.get(name, Node({}, span, span))
    if rest:
        child = put(below, rest, value, sink)
    else:
        child = replace(value, key_span=span, below=tree.value.get(name))
    return replace(tree, value={**tree.value, name: child})


def _unclear_value(source: SourceFile, start: int) -> Diagnostic | None:
    """For what stands behind `=` and is no value: nothing, or several keys."""
    key, text = source.text[: start - 1].strip(), source.text[start:]
    place = Label(Span(source, start, len(source.text)))
    if not text.strip():
        help_ = f"write the value, or `{key}=null` to take one back"
        return Diagnostic("HC202", "nothing stands behind `=`", place, help=help_)
    if re.fullmatch(r"[^\[{\"',]+(,\s*[A-Za-z_][\w.]*=[^,\[{\"']+)+", text):
        return Diagnostic("HC202", "the value holds other keys", place, help="give each key a `--set` of its own")
    return None


def _whole_value(name: str, tree: Node, value: Node) -> str:
    """How to set something inside a value that is no mapping."""
    if isinstance(tree.value, tuple):
        return "lists are replaced whole, as in `--set 'data.train=[{path: data/train_chatml.json}]'`"
    shape = shape_in(tree.value) if isinstance(tree.value, str) else None
    if shape is not None and name == "gpu" and isinstance(value.value, str):
        nodes = f"{shape[1]}x" if shape[1] else ""
        return f"replace the short form as a whole: `--set hardware={nodes}{shape[2]}x{value.value}`"
    return "leave the last word out, or give a mapping"


def _value(source: SourceFile, start: int, sink: Sink) -> Node | None:
    """The text behind `=` read as YAML, with spans in the whole text."""
    head = "value: "
    inner = Sink()
    tree = parse(SourceFile(source.path, source.name, head + source.text[start:]), inner)
    if tree is None:
        place = Label(Span(source, start, len(source.text)))
        (first, *_) = inner.diagnostics
        message = first.message
        message = f"the value is {message}" if message.startswith("not ") else f"in the value: {message}"
        sink.add(Diagnostic("HC202", message, place, help=first.help))
        return None
    node = tree.get("value")
    if len(tree.plain()) > 1:
        place = Label(Span(source, start, len(source.text)))
        sink.add(
            Diagnostic("HC202", "the value holds keys of its own", place, help="give each key a `--set` of its own")
        )
        return None
    return _moved(node, source, start - len(head)) if node is not None else None


def _moved(node: Node, source: SourceFile, by: int) -> Node:
    """The same tree in another text, `by` code points further on."""

    def move(span: Span) -> Span:
        return Span(source, max(0, span.start + by), max(0, span.end + by))

    value = node.value
    if isinstance(value, Mapping):
        value = {name: _moved(child, source, by) for name, child in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_moved(child, source, by) for child in value)
    return Node(value, move(node.span), move(node.key_span) if node.key_span else None)


def _spanned(source: SourceFile, parts: list[str]) -> list[tuple[str, Span]]:
    """The words of a dotted key, each with its place."""
    placed, start = [], 0
    for part in parts:
        word = part.strip()
        at = source.text.index(word, start)
        placed.append((word, Span(source, at, at + len(word))))
        start = at + len(word)
    return placed
