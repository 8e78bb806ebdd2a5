"""A violation of the schema in words: what was found, what is taken, and the nearest right thing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from higgsc.compiler.diagnostics import Diagnostic, Edit, Label, closest
from higgsc.compiler.foreign import foreign_key
from higgsc.compiler.position import Span
from higgsc.compiler.source import Node, NodePath
from higgsc.spec.base import PATTERNS

_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": "has to be above {gt}",
    "greater_than_equal": "has to be at least {ge}",
    "less_than": "has to be below {lt}",
    "less_than_equal": "has to be at most {le}",
    "finite_number": "has to be a finite number",
    "too_short": "needs at least {min_length} entry",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """What pydantic has against one value."""

    path: NodePath
    """The value; for a missing key, the mapping that lacks it."""
    missing: str | None
    errors: tuple[Any, ...]
    """As from `ValidationError.errors()`; several when the value could have been one of several types."""
    known: tuple[str, ...]
    """For an unknown key: those that may stand there."""


def diagnose(tree: Node, violation: Violation) -> Diagnostic:
    """One diagnostic for one violation."""
    node, _ = tree.find(violation.path)
    kinds = {error["type"] for error in violation.errors}
    if violation.missing is not None:
        return _missing(tree, node, violation.path, violation.missing)
    if kinds == {"extra_forbidden"}:
        return _unknown(tree, node, violation)
    key = _dotted(violation.path)
    if kinds == {"literal_error"}:
        return _not_a_choice(node, key, _choices(violation.errors))
    (error, *others) = violation.errors
    if not others and error["type"] in _BOUNDS:
        bound = _BOUNDS[error["type"]].format(**error.get("ctx", {}))
        return Diagnostic("HC105", f"`{key}` is {_shown(node)}, but {bound}", Label(node.span))
    if not others and error["type"] == "string_pattern_mismatch":
        meaning = PATTERNS[error["ctx"]["pattern"]]
        return Diagnostic("HC106", f"`{key}` cannot be {_shown(node)}: {meaning}", Label(node.span))
    if not others and error["type"] == "value_error":
        return Diagnostic("HC106", str(error["msg"]).removeprefix("Value error, "), Label(node.span))
    return _wrong_type(node, key, violation.errors)


def _missing(tree: Node, node: Node, path: NodePath, name: str) -> Diagnostic:
    inside = f" in `{_dotted(path)}`" if path else ""
    place = node.place if path else _first_key(tree)
    return Diagnostic("HC102", f"missing key `{name}`{inside}", Label(place), help=f"add `{name}:`")


def _unknown(tree: Node, node: Node, violation: Violation) -> Diagnostic:
    name = str(violation.path[-1])
    parent = violation.path[:-1]
    inside = f" in `{_dotted(parent)}`" if parent else ""
    if (known_as := foreign_key(name, at_top=not parent)) is not None:
        return Diagnostic(
            "HC107", f"`{name}` is a key of {known_as.origin}, not of higgsc", Label(node.place), help=known_as.instead
        )
    match = closest(name, violation.known)
    taken = match is not None and tree.find((*parent, match))[1] == ()
    return Diagnostic(
        "HC101",
        f"unknown key `{name}`{inside}",
        Label(node.place),
        notes=(f"known here: {', '.join(violation.known)}",),
        help=f"did you mean `{match}`?" if match else None,
        fix=Edit(node.key_span, match) if match and node.key_span and not taken else None,
    )


def _not_a_choice(node: Node, key: str, choices: list[str]) -> Diagnostic:
    match = closest(str(node.value), [choice.strip("`") for choice in choices])
    return Diagnostic(
        "HC104",
        f"`{key}` cannot be {_shown(node)}; it has to be {_or(choices)}",
        Label(node.span),
        help=f"did you mean `{match}`?" if match else None,
        fix=Edit(node.span, match) if match else None,
    )


def _wrong_type(node: Node, key: str, errors: tuple[Any, ...]) -> Diagnostic:
    expected = list(dict.fromkeys(word for error in errors for word in _expected(error)))
    way_out, text = _conversion(node, expected)
    return Diagnostic(
        "HC103",
        f"`{key}` takes {_or(expected)}, not {_shown(node)}",
        Label(node.span),
        help=way_out,
        fix=Edit(node.span, text) if text is not None else None,
    )


def _conversion(node: Node, expected: list[str]) -> tuple[str | None, str | None]:
    """What to write instead when only the notation is wrong: the help, and the new text."""
    value, written = node.value, node.span.text
    if isinstance(value, str) and written[:1] in "'\"" and {"a number", "a whole number"} & set(expected):
        if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", value):
            return f"remove the quotes: `{value}`", value
    elif isinstance(value, float) and value.is_integer() and "a whole number" in expected:
        return f"write `{int(value)}`", str(int(value))
    elif isinstance(value, bool | int | float) and "a string" in expected:
        return f'put it in quotes: `"{written}"`', f'"{written}"'
    return None, None


def _expected(error: Any) -> list[str]:
    if error["type"] == "literal_error":
        return _choices((error,))
    return [_EXPECTED.get(error["type"], str(error["msg"]).removeprefix("Value error, "))]


def _choices(errors: tuple[Any, ...]) -> list[str]:
    """The words of a `literal_error`, which pydantic only gives as prose: `'a', 'b' or 'c'`."""
    return [f"`{word}`" for error in errors for word in re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))]


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(node: Node) -> str:
    value = node.value
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if value is None:
        return "empty"
    return f"the string `{value}`" if isinstance(value, str) else f"{node.span.text or value}"


def _dotted(path: NodePath) -> str:
    return ".".join(str(part) for part in path)


def _first_key(tree: Node) -> Span:
    """A short place that stands for the whole spec: its first key."""
    if isinstance(tree.value, Mapping):
        for child in tree.value.values():
            if child.key_span is not None and child.key_span.source is tree.span.source:
                return child.key_span
    return tree.span
