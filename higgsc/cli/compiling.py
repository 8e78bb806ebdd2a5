"""What `build`, `check` and `run` share: compile a spec and show what there is to say about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.ir import Ir
from higgsc.compiler.plan import Plan
from higgsc.compiler.render import render_text
from higgsc.emit.build import Build, emit_all


def compile_and_report(spec: Path, build: Path | None = None) -> Compilation:
    """Compile a spec; its diagnostics go to stderr."""
    compilation = compile_spec(spec, build=build)
    if compilation.diagnostics:
        colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        click.echo(render_text(compilation.diagnostics, cwd=Path.cwd(), colour=colour), err=True)
    errors = sum(d.severity == "error" for d in compilation.diagnostics)
    if errors:
        click.echo(f"{spec}: {errors} error{'s' if errors > 1 else ''}, nothing was built", err=True)
    return compilation


def emitted(compilation: Compilation) -> dict[str, str]:
    """All files of a compiled spec."""
    assert compilation.plan is not None
    assert compilation.ir is not None
    return emit_all(Build(plan=compilation.plan, ir=compilation.ir, sources=compilation.sources))


def headline(plan: Plan, ir: Ir) -> str:
    """Two lines that say what a plan is: `arabic  8×H200 · LoRA comprehensive r=64 …`."""
    lora = ir.spec.lora
    targets = lora.targets if isinstance(lora.targets, str) else f"{len(lora.targets)} targets"
    trainable = ir.integer("lora.trainable_parameters")
    share = trainable / ir.shape.parameter_count()
    mesh = [f"replicate {ir.integer('parallelism.replicate')}"]
    mesh += [f"shard {ir.spec.parallelism.shard}"] if ir.spec.parallelism.shard > 1 else []
    facts = [
        plan.hardware,
        f"LoRA {targets} r={lora.rank} ({trainable / 1e6:.1f} M trainable, {share:.1%})",
        ir.spec.precision,
        " × ".join(mesh),
    ]
    return f"{plan.name}  {' · '.join(facts)}\n  {' → '.join(step.name for step in plan.steps)}"


def relative(path: Path) -> str:
    """A path for people: relative when it lies below the working directory."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown
