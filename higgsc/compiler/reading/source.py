"""YAML text to a tree that remembers where every key and value stands.

Scalars follow the YAML 1.2 core schema, not YAML 1.1: `1e-4` is a number, `10:00:00` and `no` are strings, and a
key given twice is an error. PyYAML's C parser only supplies the node graph (`yaml.compose`); its own resolver is
never used. Positions are counted in code points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.limits import MAX_DEPTH, MAX_NODES, overflowing_alias, too_much, within_limits
from higgsc.compiler.reading.position import SourceFile, Span
from higgsc.compiler.reading.yaml_errors import reader_error, second_document, yaml_error
from higgsc.spec import Experiment

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

Scalar = str | int | float | bool | None
NodePath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the spec: a scalar, or a mapping or sequence of nodes.

    `span` is the value's place; `key_span` that of the key it belongs to, if it has one. Nodes of different files
    may hang in one tree once files have been composed.
    """

    value: Scalar | Mapping[str, Node] | tuple[Node, ...]
    span: Span
    key_span: Span | None = None
    below: Node | None = None
    """The value that this one replaced when files were composed."""

    @property
    def place(self) -> Span:
        """The key if there is one, else the value: where to point when the entry as a whole is meant."""
        return self.key_span or self.span

    def plain(self) -> Any:
        """The value without positions (mappings as dict, sequences as tuple)."""
        if isinstance(self.value, Mapping):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return tuple(child.plain() for child in self.value)
        return self.value

    def get(self, key: str | int) -> Node | None:
        """A child by key or index."""
        if isinstance(self.value, Mapping) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, tuple) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def find(self, path: NodePath) -> tuple[Node, NodePath]:
        """The deepest node along `path`, and the part of `path` that was not found."""
        node = self
        for depth, key in enumerate(path):
            child = node.get(key)
            if child is None:
                return node, path[depth:]
            node = child
        return node, ()

    def at(self, path: str) -> Node | None:
        """The node at a dotted path such as `lora.rank`, or None."""
        node, rest = self.find(tuple(path.split(".")))
        return None if rest else node


def parse(source: SourceFile, sink: Sink) -> Node | None:
    """Turn the text of a spec into its tree; problems go to `sink`, and then the result is None."""
    try:
        if not within_limits(source, sink):
            return None
        documents = list(yaml.compose_all(source.text, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        sink.add(yaml_error(source, error))
        return None
    except yaml.reader.ReaderError as error:
        sink.add(reader_error(source, error))
        return None
    if len(documents) > 1:
        second = documents[1].start_mark
        sink.add(second_document(source, source.offset(second.line, second.column)))
        return None
    root = documents[0] if documents else None
    if not isinstance(root, yaml.MappingNode):
        found = "the file is empty" if root is None else f"found a {_kind(root)}"
        sink.add(
            Diagnostic(
                "HC003",
                f"a spec is a mapping of keys to values; {found}",
                Label(Span(source, 0, 0) if root is None else _span(source, root)),
                help=_as_mapping(source, root),
            )
        )
        return None
    before = sink.error_count
    tree = _Builder(source, sink, root).build(root, None, ())
    return None if sink.error_count > before else tree


def _as_mapping(source: SourceFile, root: yaml.Node | None) -> str:
    """How a file that is no mapping becomes one."""
    if isinstance(root, yaml.SequenceNode) and not root.flow_style and root.value:
        spans = [_span(source, entry) for entry in root.value if isinstance(entry, yaml.MappingNode)]
        if len(spans) == len(root.value) and all(span.line == span.end_line for span in spans):
            return "take the `- ` out of each line"
        if len(spans) == len(root.value):
            return "take the `- ` out, so that every key starts its line"
    if source.path.parent.name == "sites":
        return "start with `partition:` or another key of a site"
    return "start with `apiVersion: higgsc/v1`"


class _Builder:
    """Turns PyYAML's node graph into `Node`s, within a budget that stops alias bombs."""

    def __init__(self, source: SourceFile, sink: Sink, root: yaml.MappingNode) -> None:
        self.source = source
        self.sink = sink
        self.root = root
        self.nodes = 0

    def build(self, node: yaml.Node, key_span: Span | None, path: NodePath) -> Node:
        span = _span(self.source, node)
        self.nodes += 1
        if len(path) > MAX_DEPTH or self.nodes > MAX_NODES:
            if self.nodes <= MAX_NODES + 1:
                limit = f"{MAX_DEPTH} levels" if len(path) > MAX_DEPTH else f"{MAX_NODES:,} values"
                self.sink.add(too_much(limit, span, overflowing_alias(self.source)))
                self.nodes = MAX_NODES + 2
            return Node(None, span, key_span)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, path), span, key_span)
        if isinstance(node, yaml.SequenceNode):
            entries = tuple(self.build(child, None, (*path, index)) for index, child in enumerate(node.value))
            return Node(entries, span, key_span)
        assert isinstance(node, yaml.ScalarNode)
        return Node(self._scalar(node), span, key_span)

    def _mapping(self, node: yaml.MappingNode, path: NodePath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key_span = _span(self.source, key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                braces = self.source.text[max(0, key_span.start - 1) : key_span.start + 1] == "{{"
                option = f"--set {'.'.join(map(str, path))}=…" if path else "--set KEY=VALUE"
                help_ = f"there are no templates: write the value, or take the line out and give `{option}`"
                message = f"a key must be a word, not a {_kind(key_node)}"
                help_ = help_ if braces else "write `key: value`; in a sweep, keys that change together are `a, b`"
                self.sink.add(Diagnostic("HC005", message, Label(key_span), help=help_))
                continue
            key = str(key_node.value)
            if key == "<<":
                message = "merge key `<<` is not part of YAML 1.2"
                self.sink.add(Diagnostic("HC005", message, Label(key_span), help=self._merged(node, value_node)))
                continue
            if key in entries:
                first = entries[key].key_span
                self.sink.add(
                    Diagnostic(
                        "HC004",
                        f"key `{key}` is given twice",
                        Label(key_span, "again here"),
                        secondary=(Label(first, "first here"),) if first else (),
                        help="keep one of the two",
                    )
                )
                continue
            entries[key] = self.build(value_node, key_span, (*path, key))
        return entries

    def _merged(self, node: yaml.MappingNode, merged: yaml.Node) -> str:
        """How the keys that `<<` was to bring into a mapping get there."""
        instead = "what several specs share goes into a file of its own, named in `extends`"
        own = {str(key.value) for key, _ in node.value}
        pairs = merged.value if isinstance(merged, yaml.MappingNode) else []
        if not 1 <= len(pairs) <= 6 or not all(isinstance(each, yaml.ScalarNode) for pair in pairs for each in pair):
            return f"write the keys out here; {instead}"
        listed = [f"`{key.value}: {_span(self.source, value).text}`" for key, value in pairs if key.value not in own]
        holder = next((str(key.value) for key, value in self.root.value if value is merged), None)
        # What was only there to be merged is no key of a spec.
        done = f", and take `{holder}` out" if holder is not None and holder not in Experiment.model_fields else ""
        return f"write {', '.join(listed)} instead{done}; {instead}" if listed else f"take the line out{done}"

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        text = str(node.value)
        if node.style in ("'", '"', "|", ">"):
            return text
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text):
            return True
        if _FALSE.fullmatch(text):
            return False
        if len(text) <= 32:
            if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
                return int(text, 0)
            if _INT.fullmatch(text):
                return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if match := _INFINITY.fullmatch(text):
            return float(match[1] + "inf")
        if _NAN.fullmatch(text):
            return float("nan")
        return text


def _span(source: SourceFile, node: yaml.Node) -> Span:
    start = source.offset(node.start_mark.line, node.start_mark.column)
    end = source.offset(node.end_mark.line, node.end_mark.column)
    # A block mapping or sequence ends where the next token starts; point at its own last line instead.
    end = start + len(source.text[start:end].rstrip())
    return Span(source, start, max(start, end))


def _kind(node: yaml.Node) -> str:
    return {yaml.MappingNode: "mapping", yaml.SequenceNode: "list", yaml.ScalarNode: "single value"}[type(node)]
