"""`higgsc schema`: the language as JSON Schema."""

from __future__ import annotations

import json

import click

from higgsc.spec.json_schema import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of specs (draft 2020-12); docs/schema/higgsc.v1.json is a copy of it."""
    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
