"""The tree of a spec against its models: pydantic decides, diagnostics say where and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink, did_you_mean
from higgsc.compiler.source import Node
from higgsc.spec import Experiment
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
}
_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "too_short", "too_long"}
_FORM = {"string_pattern_mismatch", "string_too_short", "string_too_long", "value_error"}


def validate(tree: Node, sink: Sink) -> Experiment | None:
    """The spec as a typed object, or None when it has errors (all of them in `sink`)."""
    try:
        return Experiment.model_validate(tree.plain())
    except ValidationError as error:
        for group in _by_place(tree, _without_echoes(error.errors(include_url=False))):
            sink.add(_diagnostic(tree, group))
    return None


def _without_echoes(errors: list[Any]) -> list[Any]:
    """Errors without `too_short` of a list whose entries have errors: pydantic does not count those entries."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(len(e["loc"]) > len(error["loc"]) and e["loc"][: len(error["loc"])] == error["loc"] for e in errors)
    ]


def _by_place(tree: Node, errors: list[Any]) -> list[list[Any]]:
    """Errors of one value together: a union reports one error for each of its members."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for error in errors:
        node, rest = tree.find(error["loc"])
        missing = error["loc"][-1] if error["type"] == "missing" else None
        groups.setdefault((id(node), missing), []).append(error)
    return list(groups.values())


def _diagnostic(tree: Node, errors: list[Any]) -> Diagnostic:
    # The member of a union that got furthest into the value says most.
    error = max(errors, key=lambda e: len(e["loc"]))
    node, _ = tree.find(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    key = _dotted(tree, error["loc"])
    if kind == "extra_forbidden":
        parent = tuple(error["loc"][:-1])
        known = _known_keys(tree, parent)
        name = str(error["loc"][-1])
        return Diagnostic(
            "HC101",
            f"unknown key `{name}`" + (f" in `{_dotted(tree, parent)}`" if parent else ""),
            Label(node.place),
            notes=(f"known here: {', '.join(known)}",),
            help=did_you_mean(name, known),
        )
    if kind == "missing":
        name = str(error["loc"][-1])
        parent = _dotted(tree, error["loc"][:-1])
        place = node.place if node is not tree else _first_line(tree)
        inside = f" in `{parent}`" if parent else ""
        return Diagnostic("HC102", f"missing key `{name}`{inside}", Label(place), help=f"add `{name}:`")
    if kind == "literal_error" and len({e["type"] for e in errors}) == 1:
        choices = _choices(error)
        return Diagnostic(
            "HC104",
            f"`{key}` cannot be {_shown(node)}; it has to be {_or(choices)}",
            Label(node.span),
            help=did_you_mean(str(node.value), [choice.strip("`") for choice in choices]),
        )
    if kind in _RANGE:
        return Diagnostic("HC105", f"`{key}` is {_shown(node)}, but {_bound(error)}", Label(node.span))
    if kind in _FORM and len(errors) == 1:
        message = str(error["msg"]).removeprefix("Value error, ")
        if kind == "string_pattern_mismatch":
            message = f"`{key}` cannot be {_shown(node)}: {PATTERNS[context['pattern']]}"
        return Diagnostic("HC106", message, Label(node.span if error["loc"] else _first_line(tree)))
    expected = list(dict.fromkeys(word for e in errors for word in _expected(e)))
    return Diagnostic(
        "HC103",
        f"`{key}` takes {_or(expected)}, not {_shown(node)}",
        Label(node.span),
        help=_type_help(node, expected),
    )


def _expected(error: Any) -> list[str]:
    if error["type"] == "literal_error":
        return _choices(error)
    return [_EXPECTED.get(error["type"], str(error["msg"]).removeprefix("Value error, "))]


def _choices(error: Any) -> list[str]:
    """The words of a `literal_error`, which pydantic only gives as prose: `'a', 'b' or 'c'`."""
    return [f"`{word}`" for word in re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))]


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bound(error: Any) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"has to be above {context['gt']}"
        case "greater_than_equal":
            return f"has to be at least {context['ge']}"
        case "less_than":
            return f"has to be below {context['lt']}"
        case "less_than_equal":
            return f"has to be at most {context['le']}"
        case "too_short":
            return f"needs at least {context['min_length']} entry"
        case _:
            return str(error["msg"]).lower()


def _shown(node: Node) -> str:
    value = node.value
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"the string `{value}`" if isinstance(value, str) else f"{node.span.text or value}"


def _type_help(node: Node, expected: list[str]) -> str | None:
    text = node.value
    if isinstance(text, str) and node.span.text[:1] in "'\"" and any("number" in e for e in expected):
        try:
            float(text)
        except ValueError:
            return None
        return f"remove the quotes: `{text}`"
    if isinstance(text, float) and text.is_integer() and "a whole number" in expected:
        return f"write `{int(text)}`"
    if not isinstance(text, (str, tuple, Mapping)) and text is not None and "a string" in expected:
        return f'put it in quotes: `"{node.span.text}"`'
    return None


def _dotted(tree: Node, loc: tuple[Any, ...]) -> str:
    """The part of a pydantic location that exists in the tree (pydantic inserts names of union members)."""
    _, rest = tree.find(loc)
    return ".".join(str(part) for part in loc[: len(loc) - len(rest)])


def _known_keys(tree: Node, parent: tuple[Any, ...]) -> list[str]:
    """The keys that the model at `parent` has."""
    model: Any = Experiment
    for part in parent:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(part)
            model = _model_in(field.annotation) if field is not None else model
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The model inside an annotation such as `tuple[Source, ...]` or `Merge | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _first_line(tree: Node) -> Any:
    """A short place that stands for the whole spec: its first key."""
    if isinstance(tree.value, Mapping):
        for child in tree.value.values():
            if child.key_span is not None and child.key_span.source is tree.span.source:
                return child.key_span
    return tree.span
