"""The tree of a spec against its models: pydantic decides, `violations.py` says it in words."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.source import Node, NodePath
from higgsc.compiler.violations import Violation, diagnose
from higgsc.spec import Experiment


def validate(tree: Node, sink: Sink) -> Experiment | None:
    """The spec as a typed object, or None when it has errors (all of them in `sink`)."""
    try:
        return Experiment.model_validate(tree.plain())
    except ValidationError as error:
        for violation in _violations(tree, error.errors(include_url=False)):
            sink.add(diagnose(tree, violation))
    return None


def _violations(tree: Node, errors: list[Any]) -> list[Violation]:
    """Errors gathered by the value they are about: a union reports one for each of its members."""
    groups: dict[tuple[NodePath, str | None], list[Any]] = {}
    for error in _without_echoes(errors):
        missing = str(error["loc"][-1]) if error["type"] == "missing" else None
        path = locate(tree, error["loc"][:-1] if missing else error["loc"])
        groups.setdefault((path, missing), []).append(error)
    # A member of a union that got further into the value says more than one that stopped before.
    deep = [path for path, _ in groups]
    return [
        Violation(path=path, missing=missing, errors=tuple(found), known=_known_keys(path, found))
        for (path, missing), found in groups.items()
        if missing or not any(len(other) > len(path) and other[: len(path)] == path for other in deep)
    ]


def _without_echoes(errors: list[Any]) -> list[Any]:
    """Errors without `too_short` of a list whose entries have errors: pydantic does not count those entries."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(len(e["loc"]) > len(error["loc"]) and e["loc"][: len(error["loc"])] == error["loc"] for e in errors)
    ]


def locate(tree: Node, loc: tuple[Any, ...]) -> NodePath:
    """The part of a pydantic location that exists in the tree; names of union members are passed over."""
    node, path = tree, []
    for part in loc:
        child = node.get(part)
        if child is not None:
            node = child
            path.append(part)
    return tuple(path)


def _known_keys(path: NodePath, errors: list[Any]) -> tuple[str, ...]:
    """The keys that may stand where an unknown one does."""
    if errors[0]["type"] != "extra_forbidden":
        return ()
    return tuple(model_at(path[:-1]).model_fields)


def model_at(path: NodePath) -> type[BaseModel]:
    """The model that describes the mapping at a path of the spec."""
    model: type[BaseModel] = Experiment
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _model_in(field.annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `tuple[Source, ...]` or `Merge | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None
