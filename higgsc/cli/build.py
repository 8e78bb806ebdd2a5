"""`higgsc build`: specs to files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report, composition_options, headline, relative
from higgsc.compiler.compile import Compilation
from higgsc.contract.outcome import ExitCode
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.points import former_points, sweep_files
from higgsc.emit.shell import quote_argv
from higgsc.emit.write import Changes, compare, remove, write


@click.command("build")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the build [generated/NAME].")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the files on disk are not what the spec says.")
@click.option("--force", is_flag=True, help="Overwrite files that were edited by hand.")
@composition_options
def command(
    specs: tuple[Path, ...],
    output: Path | None,
    check: bool,
    force: bool,
    site: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Compile SPECS and write their scripts, job files and reports."""
    if output is not None and len(specs) > 1:
        raise click.UsageError("--output takes one spec")
    failed = False
    for spec in specs:
        compilation = compile_and_report(spec, build=output, site=site, overrides=overrides)
        if not compilation.compiled:
            failed = True
        elif check:
            failed = not _up_to_date(compilation) or failed
        else:
            _write(compilation, force=force)
            click.echo(f"next: {_next(compilation, spec, output, site, overrides)}")
    if failed:
        sys.exit(ExitCode.DIAGNOSTICS)


def _write(compilation: Compilation, *, force: bool) -> None:
    folder = compilation.root / compilation.folder
    beside = sweep_files(compilation)
    builds = builds_of(compilation)
    for place in former_points(compilation):
        remove(place)
    if beside:
        write(folder, beside, force=force, below=[Path(build.plan.build).name for build in builds])
    for build in builds:
        files = emit_all(build)
        changes = write(compilation.root / build.plan.build, files, force=force)
        click.echo(headline(build.plan, build.ir))
        if not beside:
            click.echo(f"wrote {len(files)} files to {relative(folder)}{_listing(changes, len(files))}")
    if beside:
        click.echo(f"wrote {len(builds)} points to {relative(folder)}")
        arrays = "slurm/submit.sh" in beside
        click.echo(
            f"as job arrays: {relative(folder / 'slurm/submit.sh')}"
            if arrays
            else "no job arrays: the points differ in their steps, or in what these ask Slurm for"
        )


def _up_to_date(compilation: Compilation) -> bool:
    """Compare every build with the files on disk, and say what differs."""
    folder = compilation.root / compilation.folder
    fine = True
    for build in builds_of(compilation):
        place = compilation.root / build.plan.build
        changes = compare(place, emit_all(build))
        click.echo(_verdict(relative(place), changes))
        fine = fine and not changes
    for former in former_points(compilation):
        click.echo(f"{relative(former)}: no longer a point of the sweep; run `higgsc build`")
        fine = False
    if beside := sweep_files(compilation):
        changes = compare(folder, beside)
        click.echo(_verdict(relative(folder), changes))
        fine = fine and not changes
    return fine


def _next(
    compilation: Compilation, spec: Path, output: Path | None, site: str | None, overrides: tuple[str, ...]
) -> str:
    """The command that carries this very build out: the same spec with the same options, or the folder itself."""
    on_gpus = compilation.compiled[0].ir.spec.hardware.device == "cuda"
    options = [*(["--site", site] if site else []), *(word for text in overrides for word in ("--set", text))]
    what = [str(spec), *options] if output is None else [str(output)]
    return quote_argv(["higgsc", "submit" if on_gpus else "run", *what])


def _listing(changes: Changes, total: int) -> str:
    if not changes:
        return "  (nothing changed)"
    if len(changes.new) == total:
        return ""
    named = changes.all[:4]
    more = f" and {len(changes.all) - len(named)} more" if len(changes.all) > len(named) else ""
    return f"  ({len(changes.all)} changed: {', '.join(named)}{more})"


def _verdict(folder: str, changes: Changes) -> str:
    if not changes:
        return f"{folder}: up to date"
    kinds = (
        ("missing", changes.new),
        ("outdated", changes.outdated),
        ("edited by hand", changes.edited),
        ("no longer emitted", changes.stale),
    )
    lines = [f"  {kind}: {path}" for kind, paths in kinds for path in paths]
    return "\n".join([f"{folder}: not what the spec says; run `higgsc build`", *lines])
