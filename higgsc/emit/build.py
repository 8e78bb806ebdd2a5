"""What every emitter works on."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from higgsc.compiler.compile import Compilation
from higgsc.compiler.ir import Ir
from higgsc.compiler.plan import Plan
from higgsc.compiler.reading.position import SourceFile

LOCK = "higgsc.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A compiled spec on its way to files."""

    plan: Plan
    ir: Ir
    sources: tuple[SourceFile, ...]
    overrides: tuple[str, ...] = ()
    """What the command line set: `key.path=value`."""
    of_sweep: bool = False
    """Whether it is one point of a sweep, whose scripts Slurm may run as tasks of an array."""

    def root_from(self, folder: str) -> str:
        """The project root as seen from a folder of the build."""
        return posixpath.relpath(".", posixpath.join(self.plan.build, folder))


def builds_of(compilation: Compilation) -> tuple[Build, ...]:
    """One build for each point of the spec's sweep; one for a spec without."""
    return tuple(
        Build(
            plan=made.plan,
            ir=made.ir,
            sources=compilation.sources,
            overrides=compilation.overrides,
            of_sweep=len(compilation.compiled) > 1,
        )
        for made in compilation.compiled
    )
