"""`higgsc check`: compile, report, write nothing (but what `--fix` can mend)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from higgsc.cli.compiling import composition_options, headline
from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Diagnostic
from higgsc.compiler.fixes import apply_fixes
from higgsc.compiler.presence import missing_files, missing_packages
from higgsc.compiler.render import FORMATS, Format, render
from higgsc.contract.outcome import ExitCode


@click.command("check")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", help="How problems are written.")
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option("--fix", is_flag=True, help="Apply the fixes that are safe to apply unseen, then check again.")
@composition_options
def command(
    specs: tuple[Path, ...], form: Format, as_json: bool, fix: bool, site: str | None, overrides: tuple[str, ...]
) -> None:
    """Compile SPECS and report what is wrong; write nothing."""
    found: list[Diagnostic] = []
    form = "json" if as_json else form
    for spec in specs:
        compilation = compile_spec(spec, site=site, overrides=overrides)
        if fix:
            for path, count in apply_fixes(compilation.diagnostics).items():
                click.echo(f"fixed {count} in {os.path.relpath(path)}", err=True)
            compilation = compile_spec(spec, site=site, overrides=overrides)
        found += (*compilation.diagnostics, *missing_files(compilation), *missing_packages(compilation))
        if form == "text":
            for made in compilation.compiled:
                click.echo(headline(made.plan, made.ir))
    # For people the problems go to stderr, beside the plans; for programs they are the result.
    colour = form == "text" and sys.stderr.isatty() and "NO_COLOR" not in os.environ
    text = render(tuple(found), form, cwd=Path.cwd(), colour=colour)
    click.echo(text, err=form == "text", nl=False)
    if any(diagnostic.severity == "error" for diagnostic in found):
        sys.exit(ExitCode.DIAGNOSTICS)
