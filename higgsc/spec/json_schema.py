"""The language as JSON Schema (draft 2020-12), for editors: keys, types, words, defaults and documentation.

A spec that extends another one may leave out what it inherits. So no key is required where it stands; what a
complete spec has to have is required once, at the top, of specs without `extends`.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from pydantic import BaseModel

from higgsc.spec.experiment import Experiment

SCHEMA_URI = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a spec file."""
    schema = Experiment.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs")
    _document(schema, Experiment)
    for model in _models(Experiment, {}).values():
        if model.__name__ in definitions:
            _document(definitions[model.__name__], model)
    required = _required(schema, definitions)
    for part in (schema, *definitions.values()):
        part.pop("required", None)
    return {
        "$schema": SCHEMA_URI,
        "title": "higgsc experiment spec, higgsc/v1",
        **{key: value for key, value in schema.items() if key != "title"},
        "if": {"not": {"required": ["extends"]}},
        "then": required,
        "$defs": definitions,
    }


def _required(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The `required` lists of a schema and of the objects below it, and nothing else."""
    found: dict[str, Any] = {"required": part["required"]} if "required" in part else {}
    properties = {}
    for name, inner in part.get("properties", {}).items():
        target = inner.get("items", inner)
        reference = target.get("$ref")
        if reference is None:
            continue
        below = _required(definitions[reference.removeprefix("#/$defs/")], definitions)
        if below:
            properties[name] = {"items": below} if "items" in inner else below
    return {**found, **({"properties": properties} if properties else {})}


def _models(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """All models that a model is made of, by name."""
    found[model.__name__] = model
    for field in model.model_fields.values():
        for inner in _inside(field.annotation):
            if inner.__name__ not in found:
                _models(inner, found)
    return found


def _inside(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _inside(argument)]


def _document(part: dict[str, Any], model: type[BaseModel]) -> None:
    """Put the docstrings of a model and of its fields into its schema."""
    if model.__doc__:
        part["description"] = inspect.cleandoc(model.__doc__)
    part.pop("title", None)
    documentation = field_docstrings(model)
    for name, field in part.get("properties", {}).items():
        field.pop("title", None)
        if name in documentation:
            field["description"] = documentation[name]


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field of a model, as in its source (PEP 257: attribute docstrings)."""
    (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
