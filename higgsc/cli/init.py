"""`higgsc init`: a first spec, commented, that compiles."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from string import Template

import click

from higgsc.cli.compiling import compile_and_report, relative
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.shell import template_folder
from higgsc.spec.json_schema import json_schema

SCHEMA = "higgsc.v1.json"
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*|[0-9]+x[A-Za-z0-9-]+")
_WORDS = {"null", "true", "false"}


@click.command("init")
@click.argument("name")
@click.option("--data", default="data/train_chatml.json", show_default=True, help="The file of training samples.")
@click.option("--hardware", default="8xH200", show_default=True, help="Such as 2x8, 2x8xH100 or 1xCPU.")
def command(name: str, data: str, hardware: str) -> None:
    """Write specs/NAME.yaml, a first spec with comments, below this folder."""
    specs = Path("specs")
    spec = specs / f"{name}.yaml"
    if spec.parent != specs:
        raise click.UsageError(f"`{name}` is a path; the name of a spec is one word")
    if spec.exists():
        raise StepError("is there already, and stays as it is", code=ExitCode.USAGE, path=spec)
    specs.mkdir(exist_ok=True)
    text = Template((template_folder() / "init" / "spec.yaml").read_text("utf-8"))
    values = {"name": _scalar(name), "data": _scalar(data), "hardware": _scalar(hardware)}
    spec.write_text(text.substitute(values, schema=_schema(specs)), "utf-8")
    click.echo(f"wrote {relative(spec)}")
    if not compile_and_report(spec).compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    click.echo(f"next: higgsc plan {relative(spec)}")


def _scalar(value: str) -> str:
    """A string as YAML reads it back."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _schema(specs: Path) -> str:
    """Where editors find the schema, seen from the specs; written beside them unless the project has it."""
    if (specs.parent / "docs" / "schema" / SCHEMA).is_file():
        return f"../docs/schema/{SCHEMA}"
    (specs / f".{SCHEMA}").write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return f".{SCHEMA}"
