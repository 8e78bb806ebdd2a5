"""The compiler's front door: a spec file in, a plan (or diagnostics) out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from higgsc import __version__
from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.compiler.compose import compose, project_root
from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes import PASSES
from higgsc.compiler.plan import Plan, SitePlan
from higgsc.compiler.position import SourceFile
from higgsc.compiler.schema import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """What came of compiling a spec. Without errors there is a plan and the state that led to it."""

    root: Path
    """The project root, absolute."""
    diagnostics: tuple[Diagnostic, ...]
    sources: tuple[SourceFile, ...] = ()
    ir: Ir | None = None
    plan: Plan | None = None


def compile_spec(spec: Path, *, build: Path | None = None) -> Compilation:
    """Compile one spec.

    Phases (reading, schema, passes) run one after the other; the first with errors is the last, so that no message
    is a mere consequence of another. Within a phase everything is reported at once.

    Args:
        spec: The spec file.
        build: Where the emitted files will go; `<root>/generated/<name>` if not given.
    """
    root = project_root(spec)
    sink = Sink()
    composed = compose(spec, root, sink)
    if composed is None:
        return Compilation(root=root, diagnostics=sink.diagnostics)
    experiment = validate(composed.tree, sink)
    if experiment is None:
        return Compilation(root=root, diagnostics=sink.diagnostics, sources=composed.sources)
    folder = f"generated/{experiment.name}" if build is None else _relative(build, root)
    ir = Ir(
        spec=experiment,
        tree=composed.tree,
        spec_path=composed.sources[0].name,
        build=folder,
        shape=shape_of(experiment.model.base),
    )
    for run_pass in PASSES:
        ir = run_pass(ir, sink)
    plan = _plan(ir) if sink.error_count == 0 else None
    return Compilation(root=root, diagnostics=sink.diagnostics, sources=composed.sources, ir=ir, plan=plan)


def _plan(ir: Ir) -> Plan:
    return Plan(
        name=ir.spec.name,
        compiler=__version__,
        spec=ir.spec_path,
        build=ir.build,
        run=ir.text("output"),
        hardware=str(ir.spec.hardware),
        steps=ir.steps,
        site=SitePlan(**ir.spec.site.model_dump()),
        secrets=ir.spec.secrets,
    )


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()
