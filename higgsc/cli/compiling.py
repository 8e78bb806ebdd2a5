"""What `build`, `check` and `run` share: compile a spec and show what there is to say about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import estimate_of
from higgsc.compiler.plan import Plan
from higgsc.compiler.presence import missing_files, missing_packages
from higgsc.compiler.render.text import render_text
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.prediction import memory_line, mesh_line


def compile_and_report(
    spec: Path, *, build: Path | None = None, site: str | None = None, overrides: tuple[str, ...] = ()
) -> Compilation:
    """Compile a spec; its diagnostics, and warnings about files that are not here, go to stderr."""
    compilation = compile_spec(spec, build=build, site=site, overrides=overrides)
    diagnostics = (*compilation.diagnostics, *missing_files(compilation), *missing_packages(compilation))
    if diagnostics:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        click.echo(render_text(diagnostics, cwd=Path.cwd(), colour=colour), err=True)
    errors = sum(d.severity == "error" for d in compilation.diagnostics)
    if errors:
        click.echo(f"{spec}: {errors} error{'s' if errors > 1 else ''}, nothing was built", err=True)
    return compilation


def refuse_without_data(compilation: Compilation) -> None:
    """For what starts work on this machine or from it: the files that the spec names have to be here.

    Raises:
        StepError: Some are not (66); `compile_and_report` has named them.
    """
    if missing := missing_files(compilation):
        count = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
        raise StepError(f"nothing was started: {count} of the spec not found", code=ExitCode.MISSING_INPUT)


Command = TypeVar("Command", bound=Callable[..., Any])


def composition_options(command: Command) -> Command:
    """`--set` and `--site`, for every command that compiles."""
    for option in (
        click.option("--site", metavar="NAME", help="Use the site specs/sites/NAME.yaml instead of the spec's."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a value, such as lora.rank=16."
        ),
    ):
        command = option(command)
    return command


def headline(plan: Plan, ir: Ir) -> str:
    """Three lines that say what a plan is: `arabic  8×H200 · LoRA comprehensive r=64 …`, its steps, its memory."""
    lora, trainable = ir.spec.lora, ir.integer("training.trainable_parameters")
    if lora is None:
        trained = f"whole model ({trainable / 1e6:,.1f} M trainable)"
    else:
        targets = lora.targets if isinstance(lora.targets, str) else f"{len(lora.targets)} targets"
        share = trainable / ir.shape.parameter_count()
        listens = "" if ir.spec.model.whisper is None else " and a Whisper's projector"
        trained = f"LoRA {targets} r={lora.rank}{listens} ({trainable / 1e6:.1f} M trainable, {share:.1%})"
    facts = [
        plan.hardware,
        trained,
        ir.spec.precision,
        mesh_line(ir),
    ]
    steps = " → ".join(step.name for step in plan.steps)
    return f"{plan.name}  {' · '.join(facts)}\n  {steps}\n  memory  {memory_line(estimate_of(ir))}"


def relative(path: Path) -> str:
    """A path for people: relative when it lies below the working directory."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown
