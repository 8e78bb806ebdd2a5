"""`higgsc checkpoint`: what a training left behind, and adapters of other trainers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from higgsc.cli.compiling import relative
from higgsc.cli.launching import asked_about
from higgsc.cli.quiet import quiet_libraries
from higgsc.cli.words import ago, count, size, table
from higgsc.contract.jobs import TrainJob, load_job
from higgsc.contract.outcome import ExitCode, StepError

if TYPE_CHECKING:
    from higgsc.deploy.inspect.distance import Distance
    from higgsc.deploy.inspect.find import Found
    from higgsc.deploy.inspect.report import Report
    from higgsc.deploy.inspect.table import Row, Shelf

_SHOWN = 20
"""Problems of one checkpoint that are printed; `--json` has them all."""

PathArgument = click.Path(path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group("checkpoint")
def command() -> None:
    """List, validate, compare, find and convert checkpoints and adapters."""
    quiet_libraries()


@command.command("list")
@click.argument("name", metavar="[RUN|FOLDER]", required=False, type=PathArgument)
@click.option("--fast", is_flag=True, help="Compare the sizes of files alone, not their hashes.")
@as_json
def list_command(name: Path | None, fast: bool, as_json: bool) -> None:
    """Show the checkpoints of a run: a row for each step.

    FOLDER holds step-*; without an argument: those of all runs below runs/."""
    from higgsc.deploy.inspect.table import read_shelf

    shelves = [read_shelf(folder, hashes=not fast) for folder in _folders(name)]
    if as_json:
        _print("higgsc.checkpoints/v1", folders=[shelf.document() for shelf in shelves])
        return
    if not shelves:
        click.echo("no checkpoints below runs/; a training saves them")
    click.echo("\n".join(line for shelf in shelves for line in _shelf(shelf)))


@command.command("validate")
@click.argument("name", metavar="CHECKPOINT|RUN", type=PathArgument)
@click.option("--base", type=PathArgument, help="Folder of the base, instead of the one that the adapter names.")
@as_json
def validate_command(name: Path, base: Path | None, as_json: bool) -> None:
    """Check everything about a checkpoint, an adapter, or all checkpoints of a run.

    Hashes, numbers that are not finite, names and shapes against the base, the configuration. Exits with 65 if
    anything is wrong."""
    from higgsc.deploy.inspect.check import check_adapter, check_checkpoint

    if (name / "adapter_config.json").is_file() or (name / "adapter_model.safetensors").is_file():
        reports = [check_adapter(name, base=base)]
    else:
        reports = [check_checkpoint(path, base=base) for path in _checkpoints(name)]
    if as_json:
        _print("higgsc.checkpoint-check/v1", checked=[report.document() for report in reports])
    else:
        click.echo("\n".join(line for report in reports for line in _report(report)))
    if any(report.problems for report in reports):
        sys.exit(ExitCode.BAD_DATA)


@command.command("compare")
@click.argument("first", metavar="A", type=PathArgument)
@click.argument("second", metavar="B", type=PathArgument)
@as_json
def compare_command(first: Path, second: Path, as_json: bool) -> None:
    """Show the figures of two checkpoints, and how far apart their adapters are.

    A and B are checkpoints or folders of adapters; their ranks may differ. Of each group of modules: the norm of what
    each adapter changes (scale × B @ A), the norm of the difference, and the cosine between the two changes."""
    from higgsc.deploy.inspect.compare import compare

    found = compare(first, second)
    if as_json:
        _print("higgsc.checkpoint-comparison/v1", first=str(first), second=str(second), **found.document())
        return
    click.echo(f"A {relative(first)}\nB {relative(second)}")
    if found.shared:
        figures = [("", "A", "B", "B - A")]
        figures += [
            (name, f"{one:.4g}", f"{two:.4g}", f"{two - one:+.4g}") for name, (one, two) in found.shared.items()
        ]
        click.echo("\n".join(table(figures)))
    if found.distance is None:
        click.echo("  a whole model was trained: there are no adapters to compare")
        return
    rows: list[tuple[str, ...]] = [("", "modules", "|A|", "|B|", "|A - B|", "cosine", "lengths of DoRA")]
    rows += [(name, *_distance(group)) for name, group in found.distance.groups().items()]
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]  # neither is DoRA
    click.echo("\n".join(table(rows)))
    for name, whole in found.distance.whole.items():
        one, two = whole.norms
        click.echo(f"  {name}, trained whole: |A| {one:.4g}, |B| {two:.4g}, |A - B| {whole.difference:.4g}")
    for note in found.distance.notes:
        click.echo(f"  {note}")


@command.command("find")
@click.argument("folder", type=PathArgument)
@as_json
def find_command(folder: Path, as_json: bool) -> None:
    """Find adapters in PEFT's format below FOLDER, also those of other trainers.

    Says of each whether `higgsc merge` takes it, and why not. Links that lead out are not followed."""
    from higgsc.deploy.inspect.find import find_adapters

    search = find_adapters(folder)
    if as_json:
        _print("higgsc.adapters/v1", **search.document())
        return
    for found in search.adapters:
        click.echo("\n".join(_found(found)))
    if not search.adapters:
        click.echo(f"no adapter below {relative(folder)}")
    for path in search.unreadable:
        click.echo(f"cannot look into {relative(path)}", err=True)
    if search.cut_off:
        click.echo("there are more folders than were looked into: name one further down", err=True)


@command.command("convert")
@click.argument("adapter", type=PathArgument)
@click.option("-o", "--output", required=True, type=PathArgument, help="Folder to write.")
def convert_command(adapter: Path, output: Path) -> None:
    """Write an adapter of another trainer as `higgsc merge` takes it.

    Pickled weights (adapter_model.bin) are read without running anything in them, names of the original release become
    those of transformers. No number changes."""
    from higgsc.deploy.inspect.convert import convert_adapter

    made = convert_adapter(adapter, output)
    whole = f", {made.whole} trained whole" if made.whole else ""
    renamed = f", {made.renamed} renamed from the original release's names" if made.renamed else ""
    click.echo(f"{relative(output)}: {count(made.modules, 'module')}{whole}{renamed}")


def _print(schema: str, **fields: Any) -> None:
    click.echo(json.dumps({"schema": schema, **fields}, indent=2, ensure_ascii=False))


def _folders(name: Path | None) -> list[Path]:
    """The folders of checkpoints that a name stands for; those that exist, if it stands for several runs.

    Raises:
        StepError: There is no such thing (66).
    """
    if name is not None:
        for folder in (name, name / "checkpoints"):
            if any(folder.glob("step-*")):
                return [folder]
    found = []
    targets = asked_about(name)
    for target in targets:
        for step in target.plan.steps:
            if step.name == "train":
                job = load_job(target.root / step.job_path)
                assert isinstance(job, TrainJob)
                found.append(target.root / job.checkpoints)
    there = [folder for folder in found if folder.is_dir()]
    if name is not None and not there:
        raise StepError(
            "there are no checkpoints yet",
            code=ExitCode.MISSING_INPUT,
            path=found[0] if found else name,
            help="a training saves them; `higgsc status` says how far it is",
        )
    return there


def _checkpoints(name: Path) -> list[Path]:
    """A checkpoint, or those of a run.

    Raises:
        StepError: There is none (66).
    """
    if (name / "manifest.json").is_file() or name.name.startswith("step-"):
        return [name]
    found = [path for folder in _folders(name) for path in folder.glob("step-*") if path.name[5:].isdigit()]
    if not found:
        raise StepError("there is no checkpoint here", code=ExitCode.MISSING_INPUT, path=name)
    return sorted(found, key=lambda path: (path.parent, int(path.name[5:])))


def _shelf(shelf: Shelf) -> list[str]:
    metrics = {"validation": "validation/audio_loss", "training": "loss/audio"}
    if shelf.best_by not in metrics.values():
        metrics[shelf.best_by] = shelf.best_by
    rows = [("step", *metrics, "size", "files", "mesh", "saved", "")]
    for row in shelf.rows:
        figures = (f"{row.metrics[name]:.4g}" if name in row.metrics else "" for name in metrics.values())
        rows.append(
            (f"{row.step:,}", *figures, size(row.size), row.state, _mesh(row), ago(row.saved), _remarks(row, shelf))
        )
    lines = [relative(shelf.folder), *(table(rows) if shelf.rows else ["  no checkpoints"])]
    if shelf.unfinished:
        lines.append(f"  being written or deleted, or left by a killed process: {', '.join(shelf.unfinished)}")
    return lines


def _mesh(row: Row) -> str:
    parts = [f"{name} {number}" for name, number in row.mesh.items() if number > 1]
    return ", ".join(parts) if parts else "1 process" if row.mesh else ""


def _remarks(row: Row, shelf: Shelf) -> str:
    parts = [f"best by {shelf.best_by}"] if row.best else []
    parts += ["interrupted"] if row.interrupted else []
    parts += ["kept for good"] if row.kept_for_good else []
    if row.problem is not None:
        place = Path(row.problem.path or row.path)
        parts.append(f"{place.name}: {row.problem.message.removeprefix('damaged checkpoint: ')}")
    return ", ".join(parts)


def _report(report: Report) -> list[str]:
    head = "whole" if not report.problems else count(len(report.problems), "problem")
    against = f", compared with {report.compared_with}" if report.compared_with else ""
    lines = [f"{relative(report.path)}: {head} ({count(report.tensors, 'tensor')}{against})"]
    for problem in report.problems[:_SHOWN]:
        place = "" if problem.path is None else f"{relative(Path(problem.path))}: "
        lines.append(f"  {place}{problem.message}")
        if problem.help:
            lines.append(f"    = help: {problem.help}")
    if len(report.problems) > _SHOWN:
        lines.append(f"  and {len(report.problems) - _SHOWN} more, which --json lists")
    return lines + [f"  note: {note}" for note in report.notes]


def _distance(group: Distance) -> tuple[str, ...]:
    one, two = group.modules
    return (
        str(one) if one == two else f"{one} and {two}",
        *(f"{norm:.4g}" for norm in (*group.norms, group.difference)),
        "" if group.cosine is None else f"{group.cosine:.4f}",
        "" if group.magnitudes is None else f"{group.magnitudes:.2%}",
    )


def _found(found: Found) -> list[str]:
    lora = "" if found.rank is None or found.alpha is None else f"r={found.rank:g} alpha={found.alpha:g}"
    parts = [lora, found.format or "", size(found.size), f"names of {found.names}" if found.names else ""]
    lines = [f"{relative(found.path)}  {'  '.join(part for part in parts if part)}"]
    if found.targets:
        more = f" and {len(found.targets) - 8} more" if len(found.targets) > 8 else ""
        lines.append(f"  {', '.join(found.targets[:8])}{more}  on {found.base}")
    if found.refusal is None:
        return [*lines, "  merges"]
    lines.append(f"  does not merge: {found.refusal.message}")
    return lines + ([f"    = help: {found.refusal.help}"] if found.refusal.help else [])
