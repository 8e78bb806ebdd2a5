"""The reference pages and the schema are what the code says; schema and compiler agree on structure."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.reading.files import read_source
from higgsc.compiler.reading.source import parse

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "diagnostics"
SCHEMA = json.loads((ROOT / "docs" / "schema" / "higgsc.v1.json").read_text("utf-8"))

# What a schema can see: keys, types, words, bounds and forms. The rest is arithmetic and needs the compiler.
STRUCTURAL = ("HC003", "HC101", "HC102", "HC103", "HC104", "HC105", "HC106", "HC107", "HC203")


def reference() -> ModuleType:
    specification = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def plain(spec: Path) -> Any:
    """The tree of one file as JSON data."""
    source = read_source(spec, spec.name, Sink())
    tree = parse(source, Sink()) if source is not None else None
    return None if tree is None else json.loads(json.dumps(tree.plain()))


def test_the_pages_are_what_the_code_says() -> None:
    for path, text in reference().pages().items():
        assert path.read_text("utf-8") == text, f"{path}: run `python docs/build_reference.py`"


def test_the_schema_is_a_schema_and_documents_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    undocumented = [
        f"{name}.{key}"
        for name, part in {"": SCHEMA, **SCHEMA["$defs"]}.items()
        for key, field in part["properties"].items()
        if "description" not in field
    ]
    assert undocumented == []


@pytest.mark.parametrize("spec", sorted((ROOT / "specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_specs_follow_the_schema_and_name_it(spec: Path) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(plain(spec))
    first = spec.read_text("utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/schema/higgsc.v1.json"


@pytest.mark.parametrize("spec", sorted(FIXTURES.glob("*.yaml")), ids=lambda path: path.stem)
def test_schema_and_compiler_agree_on_structure(spec: Path) -> None:
    """A spec that the schema refuses, the compiler refuses for its structure, and the other way round."""
    data = plain(spec)
    if data is None:
        return  # not YAML, or not one mapping: there is nothing that a schema could look at
    by_schema = jsonschema.Draft202012Validator(SCHEMA).is_valid(data)
    found = {d.code for d in compile_spec(spec).diagnostics}
    if "HC421" in found:
        return  # a secret ends the reading before anything else is looked at
    by_compiler = not found & set(STRUCTURAL)
    assert by_schema == by_compiler
