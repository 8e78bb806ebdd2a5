"""The tree of a spec against its models: pydantic decides, `violations.py` and `keys.py` say it in words."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from higgsc.compiler.diagnostics import MAX_ERRORS, Diagnostic, Label, Sink
from higgsc.compiler.reading.source import Node, NodePath
from higgsc.compiler.words.keys import Unknown, missing_key, unknown_key
from higgsc.compiler.words.violations import Violation, diagnose
from higgsc.spec import Experiment
from higgsc.spec.site import Site


def validate(tree: Node, sink: Sink) -> Experiment | None:
    """The spec as a typed object, or None when it has errors (all of them in `sink`)."""
    try:
        experiment = Experiment.model_validate(tree.plain())
    except ValidationError as error:
        _report(tree, error.errors(include_url=False), sink)
        return None
    lora = tree.get("lora")
    if lora is not None and lora.value is None and not lora.span.text:
        # YAML reads nothing as null; that would train the whole model where the keys of an adapter were not indented.
        message = "`lora` is empty; it takes a mapping or `null`"
        help_ = "indent the keys of `lora` below it, or write `lora: null` to train the whole model"
        sink.add(Diagnostic("HC103", message, Label(lora.span), help=help_))
        return None
    return experiment


def validate_site(tree: Node, sink: Sink) -> Site | None:
    """The value below `site` as a typed object; messages are those of a spec that chooses the site."""
    node = tree.get("site")
    assert node is not None
    try:
        return Site.model_validate(node.plain())
    except ValidationError as error:
        found = [{**row, "loc": ("site", *row["loc"])} for row in error.errors(include_url=False)]
        _report(tree, found, sink)
    return None


def _report(tree: Node, errors: list[Any], sink: Sink) -> None:
    """Put errors into words, without those that are the consequence of another one."""
    unknown: dict[NodePath, Unknown] = {}
    missing: list[tuple[NodePath, str]] = []
    values: dict[NodePath, list[Any]] = {}
    seen = 0
    for error in _without_echoes(errors):
        if (seen := seen + 1) > 2 * MAX_ERRORS:
            break  # finding the words takes longer than finding the errors
        loc = error["loc"]
        if error["type"] == "missing":
            missing.append((locate(tree, loc[:-1]), str(loc[-1])))
            continue
        path = locate(tree, loc)
        if error["type"] == "extra_forbidden":
            unknown[path] = unknown_key(tree, path)
        else:
            values.setdefault(path, []).append(error)  # a union reports one for each of its members
    # A misspelt or misplaced key leaves a gap where it was meant to be; that gap is no second mistake.
    meant = _prefixes([found.meant for found in unknown.values() if found.meant is not None])
    for found in unknown.values():
        sink.add(found.diagnostic)
    # A file that was to be extended holds what seems to be missing here.
    extends = ("extends",) in meant
    for path, name in missing:
        if (*path, name) not in meant and not (extends and (*path, name) not in (("apiVersion",), ("name",))):
            sink.add(missing_key(tree, path, name))
    # A member of a union that got further into the value says more than one that stopped before.
    deeper = _prefixes([path[:-1] for path in (*values, *unknown, *((*p, n) for p, n in missing)) if path])
    for path, found_here in values.items():
        node, _ = tree.find(path)
        if path not in deeper and not (node.value is None and path in meant):
            sink.add(diagnose(tree, Violation(path=path, errors=tuple(found_here))))


def _prefixes(paths: list[NodePath]) -> set[NodePath]:
    """The paths and everything above them."""
    return {path[:end] for path in paths for end in range(1, len(path) + 1)}


def _without_echoes(errors: list[Any]) -> list[Any]:
    """Errors without `too_short` of a list whose entries have errors: pydantic does not count those entries."""
    above = _prefixes([tuple(error["loc"][:-1]) for error in errors])
    return [error for error in errors if error["type"] != "too_short" or tuple(error["loc"]) not in above]


def locate(tree: Node, loc: tuple[Any, ...]) -> NodePath:
    """The part of a pydantic location that exists in the tree; names of union members are passed over."""
    node, path = tree, []
    for part in loc:
        child = node.get(part)
        if child is not None:
            node = child
            path.append(part)
    return tuple(path)
