"""Secrets that stand in a spec as values: a spec is committed and copied, so a token in it is a token given away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.position import Span
from higgsc.compiler.reading.redact import has_token, mask
from higgsc.compiler.reading.source import Node

_SECRET_NAME = re.compile(r"(?i).*(token|secret|password|passwd|api[_-]?key)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_REFERENCE = re.compile(r"\$?\{?([A-Z_][A-Z0-9_]*)\}?")
"""The name of an environment variable, or the shell's way of reading one."""
_LISTS = ("secrets", "secret")


def refuse_secrets(tree: Node, sink: Sink) -> None:
    """Report every value that is a secret. Such a spec is not compiled any further."""
    for span, name in _secrets(tree, "", inside=False):
        variable = name if _VARIABLE.fullmatch(name) and name.lower() not in _LISTS else "HF_TOKEN"
        sink.add(
            Diagnostic(
                "HC421",
                "a secret is written into the spec",
                Label(span, "masked here, but readable in the file"),
                notes=("whoever can read the file or its history has it by now: revoke it, make a new one",),
                help=_way_out(span, name, variable),
            )
        )


def _way_out(span: Span, name: str, variable: str) -> str:
    text = span.text.strip("\"'")
    if "wandb" in name.lower():
        return "take the line out: nothing is sent to Weights & Biases, metrics.jsonl is always written"
    if not name or name.lower() in _LISTS or _SECRET_NAME.fullmatch(name) or "=" in span.text:
        return f"name the variable that holds it, `secrets: [{variable}]`, and set that where the jobs run"
    rest = mask(text).replace("*", "").strip("/-_.=:@ ")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]*", rest):
        return f"take it out, as in `{name.lower()}: {rest}`: no secret is needed there"
    return f"take it out of `{name.lower()}`: no secret is needed there"


def _secrets(node: Node, name: str, *, inside: bool) -> Iterator[tuple[Span, str]]:
    """The places of secrets at and below a node, each with the name that it goes by.

    Args:
        node: A value of the spec.
        name: Its key; for an entry of a list, the list's.
        inside: Whether it stands below `secrets`.
    """
    if isinstance(node.value, Mapping):
        for key, child in node.value.items():
            if child.key_span is not None and has_token(key, hexadecimal=inside):
                yield child.key_span, ""
            yield from _secrets(child, key, inside=inside or key in _LISTS)
    elif isinstance(node.value, tuple):
        for entry in node.value:
            yield from _secrets(entry, name, inside=inside)
    elif (found := _secret_in(node, name, inside=inside)) is not None:
        yield node.span, found.upper()


def _secret_in(node: Node, name: str, *, inside: bool) -> str | None:
    """The name of the secret that a scalar is, or None if it is none."""
    # As written: forty hex digits with a single `e` among them would be read as a number.
    text = node.span.text.strip("\"'")
    named = name not in _LISTS and (inside or bool(_SECRET_NAME.fullmatch(name)))
    variable, equals, value = text.partition("=")
    if has_token(text, hexadecimal=inside or named or "wandb" in name.lower()):
        return variable if equals else name
    if inside and equals and value and not _REFERENCE.fullmatch(value):
        return variable
    if named and isinstance(node.value, str) and node.value and not _REFERENCE.fullmatch(node.value):
        return name
    return None
