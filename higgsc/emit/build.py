"""What every emitter works on, and the build as a whole: all files of a plan with their lock."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from higgsc.compiler.compile import Compilation
from higgsc.compiler.ir import Ir
from higgsc.compiler.plan import Plan
from higgsc.compiler.position import SourceFile

LOCK = "higgsc.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A compiled spec on its way to files."""

    plan: Plan
    ir: Ir
    sources: tuple[SourceFile, ...]
    overrides: tuple[str, ...] = ()
    """What the command line set: `key.path=value`."""

    def root_from(self, folder: str) -> str:
        """The project root as seen from a folder of the build."""
        return posixpath.relpath(".", posixpath.join(self.plan.build, folder))


Emitter = Callable[[Build], dict[str, str]]


def builds_of(compilation: Compilation) -> tuple[Build, ...]:
    """One build for each point of the spec's sweep; one for a spec without."""
    return tuple(
        Build(plan=made.plan, ir=made.ir, sources=compilation.sources, overrides=compilation.overrides)
        for made in compilation.compiled
    )


def sweep_file(compilation: Compilation) -> str:
    """`sweep.json`: the points with their values, as a table for programs."""
    points = [
        {"name": made.plan.name, "build": made.plan.build, "run": made.plan.run, "values": dict(made.values)}
        for made in compilation.compiled
    ]
    return json.dumps({"schema": "higgsc.sweep/v1", "points": points}, indent=2, ensure_ascii=False) + "\n"


def emit_all(build: Build) -> dict[str, str]:
    """Every file of the build by its path below the build folder, the lock last."""
    from higgsc.emit.documents import job_files, plan_file, report, resolved
    from higgsc.emit.slurm import slurm
    from higgsc.emit.torchrun import torchrun

    emitters: tuple[Emitter, ...] = (job_files, plan_file, resolved, report, torchrun, slurm)
    files: dict[str, str] = {}
    for emitter in emitters:
        files.update(emitter(build))
    return {**files, LOCK: _lock(build, files)}


def _lock(build: Build, files: dict[str, str]) -> str:
    """sha256 of everything that the build read and wrote."""
    lock = {
        "schema": "higgsc.lock/v1",
        "compiler": build.plan.compiler,
        "overrides": build.overrides,
        "inputs": {source.name: _digest(source.text) for source in sorted(build.sources, key=lambda s: s.name)},
        "outputs": {path: _digest(text) for path, text in sorted(files.items())},
    }
    return json.dumps(lock, indent=2, ensure_ascii=False) + "\n"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8")).hexdigest()
