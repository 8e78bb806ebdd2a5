"""`higgsc build`: specs to files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from higgsc.cli.compiling import compile_and_report, emitted, headline, relative
from higgsc.contract.outcome import ExitCode
from higgsc.emit.write import Changes, compare, write


@click.command("build")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the build [generated/NAME].")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the files on disk are not what the spec says.")
def command(specs: tuple[Path, ...], output: Path | None, check: bool) -> None:
    """Compile SPECS and write their scripts, job files and reports."""
    if output is not None and len(specs) > 1:
        raise click.UsageError("--output takes one spec")
    failed = False
    for spec in specs:
        compilation = compile_and_report(spec, output)
        if compilation.plan is None or compilation.ir is None:
            failed = True
            continue
        folder = compilation.root / compilation.plan.build
        files = emitted(compilation)
        changes = compare(folder, files) if check else write(folder, files)
        if check:
            failed = failed or bool(changes)
            click.echo(_verdict(relative(folder), changes))
            continue
        click.echo(headline(compilation.plan, compilation.ir))
        click.echo(f"wrote {len(files)} files to {relative(folder)}{_listing(changes, len(files))}")
        click.echo(f"next: higgsc run {spec}")
    if failed:
        sys.exit(ExitCode.DIAGNOSTICS)


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
    kinds = (("missing", changes.new), ("differs", changes.changed), ("no longer emitted", changes.stale))
    lines = [f"  {kind}: {path}" for kind, paths in kinds for path in paths]
    return "\n".join([f"{folder}: not what the spec says; run `higgsc build`", *lines])
