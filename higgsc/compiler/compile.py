"""The compiler's front door: a spec file in; plans, or diagnostics, out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from higgsc import __version__
from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.compiler.composition.compose import compose, project_root
from higgsc.compiler.composition.sweep import Point, expand
from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes import PASSES
from higgsc.compiler.plan import Plan
from higgsc.compiler.reading.position import SourceFile
from higgsc.compiler.schema import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One plan, and the state that led to it."""

    ir: Ir
    plan: Plan
    values: tuple[tuple[str, str], ...] = ()
    """What the sweep set at this point: key and value, as written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """What came of compiling a spec."""

    root: Path
    """The project root, absolute."""
    diagnostics: tuple[Diagnostic, ...]
    name: str = ""
    """Of the spec; the points of a sweep have names of their own."""
    sources: tuple[SourceFile, ...] = ()
    overrides: tuple[str, ...] = ()
    """What the command line set, `--site` included."""
    compiled: tuple[Compiled, ...] = ()
    """One for each point of the sweep, one for a spec without; empty when there are errors."""
    folder: str = ""
    """Of the build, relative to the project root; each point of a sweep has a folder of its own below it."""


def compile_spec(
    spec: Path, *, build: Path | None = None, site: str | None = None, overrides: tuple[str, ...] = ()
) -> Compilation:
    """Compile one spec.

    Phases (reading, schema, passes) run one after the other; the first with errors is the last, so that no message
    is a mere consequence of another. Within a phase everything is reported at once.

    Args:
        spec: The spec file.
        build: Where the emitted files will go; `<root>/generated/<name>` if not given.
        site: Name of a site that replaces the spec's own.
        overrides: `key.path=value`, as from `--set`.
    """
    root = project_root(spec)
    sink = Sink()
    composed = compose(spec, root, sink, site=site, overrides=overrides)
    if composed is None:
        return Compilation(root=root, diagnostics=sink.diagnostics)
    sources = composed.sources
    points = expand(composed.tree, sink)
    name = composed.tree.get("name")
    title = name.value if name is not None and isinstance(name.value, str) else ""
    folder = f"generated/{title}" if build is None and title else _relative(build or spec.parent, root)
    compiled: list[Compiled] = []
    for point in points:
        made = _compile_point(point, sources[0].name, folder, sink)
        if made is None:
            break  # the other points would only say the same again
        compiled.append(made)
    if sink.error_count:
        compiled = []
    return Compilation(
        root=root,
        diagnostics=sink.diagnostics,
        name=title,
        sources=sources,
        overrides=(*overrides, *([f"site={site}"] if site is not None else [])),
        compiled=tuple(compiled),
        folder=folder,
    )


def _compile_point(point: Point, spec_path: str, folder: str, sink: Sink) -> Compiled | None:
    before = sink.error_count
    experiment = validate(point.tree, sink)
    if experiment is None:
        return None
    ir = Ir(
        spec=experiment,
        tree=point.tree,
        spec_path=spec_path,
        build=f"{folder}/{point.name}" if point.values else folder,
        swept=bool(point.values),
        shape=shape_of(experiment.model.base),
    )
    for run_pass in PASSES:
        ir = run_pass(ir, sink)
    return Compiled(ir=ir, plan=_plan(ir), values=point.values) if sink.error_count == before else None


def _plan(ir: Ir) -> Plan:
    return Plan(
        name=ir.spec.name,
        compiler=__version__,
        spec=ir.spec_path,
        build=ir.build,
        run=ir.text("output"),
        hardware=str(ir.spec.hardware),
        steps=ir.steps,
        site=ir.spec.site,
        secrets=ir.spec.secrets,
    )


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()
