"""Write the reference pages from the code: the spec's keys, the diagnostic codes, the JSON Schema.

    python docs/build_reference.py

`tests/test_docs.py` fails while the committed pages are not what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from higgsc.compiler.codes import CODES
from higgsc.contract.evaluation import Evaluation
from higgsc.spec.json_schema import json_schema

DOCS = Path(__file__).resolve().parent


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    return {
        DOCS / "schema" / "higgsc.v1.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        DOCS / "schema" / "evaluation.v3.json": _result_schema(),
        DOCS / "reference" / "codes.md": _codes(),
        DOCS / "reference" / "spec.md": _spec(json_schema()),
    }


def _result_schema() -> str:
    """Of `evaluation.json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Evaluation.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _codes() -> str:
    lines = [
        "# Diagnostic codes",
        "",
        "Generated from `higgsc/compiler/codes.py` by `docs/build_reference.py`. `higgsc explain HC501` prints one.",
        "`tests/fixtures/diagnostics/` holds a spec that provokes each of them, with the message that it gets.",
    ]
    for code, entry in CODES.items():
        lines += ["", f"## {code}: {entry.title}", "", f"*{entry.severity}*", "", entry.explanation]
    return "\n".join(lines) + "\n"


def _spec(schema: dict[str, Any]) -> str:
    lines = [
        "# The spec",
        "",
        "Generated from `higgsc/spec/` by `docs/build_reference.py`.",
        "",
        schema["description"],
    ]
    definitions = schema["$defs"]
    _table(lines, schema, definitions, required=schema["then"])
    _sections(lines, schema, definitions, schema["then"], prefix="", depth=2)
    return "\n".join(lines) + "\n"


def _sections(
    lines: list[str],
    part: dict[str, Any],
    definitions: dict[str, Any],
    required: dict[str, Any],
    prefix: str,
    depth: int,
) -> None:
    for name, field in part["properties"].items():
        target = _object_in(field, definitions)
        if target is None:
            continue
        many = "items" in field
        below = required.get("properties", {}).get(name, {})
        below = below.get("items", below)
        path = f"{prefix}{name}"
        lines += ["", f"{'#' * depth} `{path}`{' (a list)' if many else ''}", "", target.get("description", "")]
        _table(lines, target, definitions, required=below)
        _sections(lines, target, definitions, below, prefix=f"{path}.", depth=min(depth + 1, 4))


def _table(lines: list[str], part: dict[str, Any], definitions: dict[str, Any], required: dict[str, Any]) -> None:
    lines += ["", "| key | value | default | |", "|---|---|---|---|"]
    for name, field in part["properties"].items():
        default = "**required**" if name in required.get("required", ()) else _default(field)
        text = " ".join(field.get("description", "").split())
        lines.append(f"| `{name}` | {_kind(field, definitions)} | {default} | {text} |")


def _default(field: dict[str, Any]) -> str:
    if "default" not in field or isinstance(field["default"], dict):
        return ""
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _kind(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(member, definitions) for member in field["anyOf"]))
    if "$ref" in field:
        return "mapping"
    if "enum" in field:
        return " or ".join(f"`{word}`" for word in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), definitions)}"
    if field.get("type") == "object":
        return "mapping"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field)
    kind = {"integer": "whole number", "number": "number", "string": "string", "boolean": "true or false"}
    word = kind.get(field.get("type", ""), "`null`" if field.get("type") == "null" else "anything")
    return f"{word} {limits}".strip()


def _object_in(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The mapping that a key holds, if it holds one."""
    for candidate in (field, field.get("items", {}), *field.get("anyOf", ())):
        if "$ref" in candidate:
            found: dict[str, Any] = definitions[candidate["$ref"].removeprefix("#/$defs/")]
            return found
    return None


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(DOCS.parent))
