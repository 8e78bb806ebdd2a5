"""`higgsc diff`: what changed between two specs, or between a git revision and now, and what it means."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report
from higgsc.compiler.compile import Compiled
from higgsc.compiler.composition.compose import project_root
from higgsc.compiler.composition.provenance import shown
from higgsc.compiler.diff import Edit, diff, worst
from higgsc.contract.outcome import ExitCode, StepError


@click.command("diff")
@click.argument("before")
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The edit list for programs.")
def command(before: str, after: Path, as_json: bool) -> None:
    """Show what changed from BEFORE to AFTER and what that means for a run.

    BEFORE is a spec, or a git revision (`HEAD~1`) in which AFTER is looked up."""
    if Path(before).is_file() and not after.exists():
        raise click.UsageError(f"no spec `{after}`; a git revision comes first: `higgsc diff {after} {before}`")
    new = _compiled(after)
    with _earlier(before, after) as path:
        old = _compiled(path)
    edits = diff(old.ir, new.ir)
    if as_json:
        click.echo(json.dumps({"schema": "higgsc.diff/v1", "edits": [_row(edit) for edit in edits]}, indent=2))
        return
    for line in _lines(edits):
        click.echo(line)


def _compiled(spec: Path) -> Compiled:
    compilation = compile_and_report(spec)
    if not compilation.compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    if len(compilation.compiled) > 1:
        raise click.UsageError(f"{spec} is a sweep; compare its points one by one")
    return compilation.compiled[0]


@contextmanager
def _earlier(before: str, after: Path) -> Iterator[Path]:
    """The spec to compare with: the file of that name, or AFTER as it was in that git revision."""
    if Path(before).exists():
        yield Path(before)
        return
    root = project_root(after)
    inside = os.path.relpath(os.path.abspath(after), root)
    command = [
        "git",
        "-C",
        str(root),
        "archive",
        "--format=tar",
        before,
        "--",
        "." if inside == after.name else "specs",
    ]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode != 0:
        reason = archive.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StepError(
            f"`{before}` is neither a spec nor a git revision with specs: {reason[0] if reason else 'git failed'}",
            code=ExitCode.MISSING_INPUT,
        )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder) / inside


def _lines(edits: tuple[Edit, ...]) -> Iterator[str]:
    own = [edit for edit in edits if not edit.derived]
    if not edits:
        yield "no difference"
        return
    marks = {"insert": "+", "remove": "-", "update": "~"}
    width = max(len(edit.path) for edit in edits)
    for edit in edits:
        values = {"insert": shown(edit.after), "remove": shown(edit.before)}.get(
            edit.kind, f"{shown(edit.before)} → {shown(edit.after)}"
        )
        meaning = "follows" if edit.derived else edit.effect + (f": {edit.reason}" if edit.reason else "")
        place = "" if edit.derived else f"  {edit.origin}"
        yield f"{marks[edit.kind]} {edit.path:<{width}}  {values}{place}  {meaning}"
    if own:
        yield f"all in all: {worst(edits)}"


def _row(edit: Edit) -> dict[str, object]:
    return {
        "path": edit.path,
        "kind": edit.kind,
        "before": edit.before,
        "after": edit.after,
        "origin": str(edit.origin),
        "derived": edit.derived,
        "effect": edit.effect,
        "reason": edit.reason,
    }
