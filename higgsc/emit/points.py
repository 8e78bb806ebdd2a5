"""The folder of a sweep: `sweep.json` names the points, so that those of an earlier sweep can be told apart, and
`slurm/` submits them together."""

from __future__ import annotations

import json
from pathlib import Path

from higgsc.compiler.compile import Compilation
from higgsc.contract.outcome import StepError
from higgsc.emit.arrays import arrays, logs_of
from higgsc.emit.build import LOCK, builds_of
from higgsc.emit.emitters import lock

SWEEP = "sweep.json"


def sweep_files(compilation: Compilation) -> dict[str, str]:
    """What lies beside the points of a sweep, the lock last, by path below its folder; nothing for a spec without."""
    if len(compilation.compiled) < 2:
        return {}
    points = [
        {"name": made.plan.name, "build": made.plan.build, "run": made.plan.run, "values": dict(made.values)}
        for made in compilation.compiled
    ]
    builds = builds_of(compilation)
    scripts = arrays(compilation.name, compilation.folder, builds)
    logs = logs_of(compilation.name, builds[0].plan) if scripts else None
    table = {"schema": "higgsc.sweep/v1", "logs": logs, "points": points}
    files = {SWEEP: json.dumps(table, indent=2, ensure_ascii=False) + "\n", **scripts}
    return {**files, LOCK: lock(builds[0], files)}


def former_points(compilation: Compilation) -> tuple[Path, ...]:
    """Builds of points that the last build of this spec had and that this one does not have.

    Raises:
        StepError: The list of points cannot be read.
    """
    folder = compilation.root / compilation.folder
    place = folder / SWEEP
    if not place.is_file():
        return ()
    try:
        names = [str(point["build"]) for point in json.loads(place.read_text("utf-8"))["points"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StepError(f"not a list of points ({error})", path=place, help="remove it and build again") from error
    now = {made.plan.build for made in compilation.compiled}
    former = [compilation.root / name for name in names if name not in now]
    return tuple(path for path in former if path.is_dir() and path.parent == folder)
