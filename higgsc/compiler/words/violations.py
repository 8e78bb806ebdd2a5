"""A violation of the schema in words: what was found, what is taken, and the nearest right thing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from higgsc.compiler.diagnostics import Diagnostic, Edit, Label
from higgsc.compiler.reading.source import Node, NodePath
from higgsc.compiler.words.hint import Hint
from higgsc.compiler.words.hints import for_bound, for_pattern, for_type
from higgsc.compiler.words.hints_choice import for_choice
from higgsc.compiler.words.hints_hardware import for_hardware
from higgsc.compiler.words.keys import dotted, may_be_null
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


MAX_SHOWN = 120
"""Characters of a value that a message quotes."""


MAX_HINTED = 1000
"""Characters of a string that is worth thinking about; no value of a spec has as many."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What pydantic has against one value."""

    path: NodePath
    errors: tuple[Any, ...]
    """As from `ValidationError.errors()`; several when the value could have been one of several types."""


def diagnose(tree: Node, violation: Violation) -> Diagnostic:
    """One diagnostic for one violation."""
    path, (error, *others) = violation.path, violation.errors
    node, _ = tree.find(path)
    key = dotted(path)
    if isinstance(node.value, str) and len(node.value) > MAX_HINTED:
        return _say("HC106", f"`{key}` is {_shown(node)}, which has {len(node.value):,} characters", node, Hint())
    if {each["type"] for each in violation.errors} == {"literal_error"}:
        return _not_a_choice(node, key, _choices(violation.errors))
    if not others and error["type"] in _BOUNDS:
        return _out_of_bounds(node, path, error)
    if not others and error["type"] == "string_pattern_mismatch":
        meaning = PATTERNS[error["ctx"]["pattern"]]
        if error["loc"][-1] == "[key]":  # pydantic's word for the key of an entry
            message = f"`{dotted(path[:-1])}` cannot have the key `{path[-1]}`: {meaning}"
            return Diagnostic("HC106", message, Label(node.place), help=for_pattern(node, path).help)
        return _say("HC106", f"`{key}` cannot be {_shown(node)}: {meaning}", node, for_pattern(node, path))
    if not others and error["type"] == "value_error":
        # Only a hardware shape has a reader of its own; its message starts with the value, as Python shows it.
        found = "`hardware` is empty" if node.value is None else f"{_shown(node)} is not a hardware shape"
        forms = str(error["msg"]).partition("is not a hardware shape")[2]
        return _say("HC106", f"{found}{forms}", node, for_hardware(node))
    return _wrong_type(tree, node, path, violation.errors)


def _say(code: str, message: str, node: Node, hint: Hint) -> Diagnostic:
    fix = Edit(node.span, hint.text) if hint.text is not None else None
    return Diagnostic(code, message, Label(node.span), help=hint.help, fix=fix)


def _out_of_bounds(node: Node, path: NodePath, error: Any) -> Diagnostic:
    context = {name: f"{bound:g}" for name, bound in error.get("ctx", {}).items() if isinstance(bound, int | float)}
    bounds = {name: float(bound) for name, bound in error.get("ctx", {}).items() if isinstance(bound, int | float)}
    bound = _BOUNDS[error["type"]].format(**context)
    hint = for_bound(node, path, bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le")))
    if error["type"] == "too_short":
        return _say(
            "HC105", f"`{dotted(path)}` is empty, but {bound}", node, Hint("write `[{path: data/train_chatml.json}]`")
        )
    return _say("HC105", f"`{dotted(path)}` is {_shown(node)}, but {bound}", node, hint)


def _not_a_choice(node: Node, key: str, choices: list[str]) -> Diagnostic:
    words = [choice.strip("`") for choice in choices]
    message = f"`{key}` cannot be {_shown(node)}; it has to be {_or(choices)}"
    return _say("HC104", message, node, for_choice(node, words))


def _wrong_type(tree: Node, node: Node, path: NodePath, errors: tuple[Any, ...]) -> Diagnostic:
    expected = list(dict.fromkeys(word for error in errors for word in _expected(error)))
    takes = [
        *expected,
        *(["`null`"] if may_be_null(path) and "null" not in expected and node.value is not None else []),
    ]
    hint = for_type(node, path, expected, tree)
    if node.value is None and node.span.text:
        return _say("HC103", f"`{dotted(path)}` cannot be `{node.span.text}`; it takes {_or(takes)}", node, hint)
    if node.value is None:
        return _say("HC103", f"`{dotted(path)}` is empty; it takes {_or(takes)}", node, hint)
    return _say("HC103", f"`{dotted(path)}` takes {_or(takes)}, not {_shown(node)}", node, hint)


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
    if isinstance(value, str):
        return f"the string `{_cut(value)}`"
    return _cut(node.span.text or str(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
