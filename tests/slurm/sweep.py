"""A project whose spec has three points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.points import sweep_files
from higgsc.emit.write import write
from tests.slurm.project import SPEC, Project

POINTS = ("t-learning_rate-1e-3", "t-learning_rate-2e-3", "t-learning_rate-3e-3")
SWEEP = f"{SPEC}sweep: {{training.learning_rate: [1e-3, 2e-3, 3e-3]}}\n"


class Sweep(Project):
    """A project whose spec has several points; `build` is the folder of them all."""

    def write(self, site: Mapping[str, Any], spec: str = SWEEP, behaviour: Mapping[str, Any] | None = None) -> None:
        """Write and build the spec."""
        (self.root / "behaviour.json").write_text(json.dumps(behaviour or {}))
        compilation = compiled(self.root, site, spec)
        write(self.build, sweep_files(compilation))
        for build in builds_of(compilation):
            write(self.root / build.plan.build, emit_all(build))

    @property
    def points(self) -> list[Project]:
        """Each point as a project, for its run."""
        return [Project(self.cluster, self.root, run=f"runs/{name}") for name in POINTS]

    def tasks(self, job: str) -> dict[str, str]:
        """The state of each task of an array, by its index; tasks that have not started are shown one by one."""
        lines = self.cluster.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%K %T").splitlines()
        return dict(line.split() for line in lines)


def compiled(folder: Path, site: Mapping[str, Any], spec: str = SWEEP) -> Compilation:
    (folder / "spec.yaml").write_text(f"{spec}site: {json.dumps(site)}\n")
    compilation = compile_spec(folder / "spec.yaml")
    assert compilation.compiled, [diagnostic.message for diagnostic in compilation.diagnostics]
    return compilation
