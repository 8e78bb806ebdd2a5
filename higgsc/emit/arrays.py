"""`slurm/` of a sweep: each step as one job array, with a task for every point."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from higgsc.compiler.plan import Plan, Step
from higgsc.emit.build import Build
from higgsc.emit.shell import render
from higgsc.emit.slurm import directives, jobs_of


def arrays(name: str, folder: str, builds: Sequence[Build]) -> dict[str, str]:
    """Emit an array for each step, and the script that submits them.

    A task runs the script of its point's own build, so that there is one body of each step.

    Args:
        name: Of the spec.
        folder: Of the sweep, relative to the project root; the builds are below it.
        builds: The points; the index of a task is the place in here.

    Returns:
        Text by path below the folder; empty if the points differ in their steps or in what these ask Slurm for, which
        tasks of one array cannot.
    """
    plans = [build.plan for build in builds]
    first = plans[0]
    if any(_shape(plan) != _shape(first) for plan in plans[1:]):
        return {}
    logs = logs_of(name, first)
    scripts = {step.name: f"slurm/{step.name}.sbatch" for step in first.steps}
    files = {
        path: render(
            "slurm/array.sbatch.j2",
            name=name,
            plan=first,
            step=first.step(step),
            path=f"{folder}/{path}",
            directives=_directives(name, logs, first, first.step(step), len(plans)),
            points=plans,
        )
        for step, path in scripts.items()
    }
    files["slurm/submit.sh"] = render(
        "slurm/submit.sh.j2",
        plan=first,
        name=name,
        root=posixpath.relpath(".", posixpath.join(folder, "slurm")),
        logs=logs,
        runs=[plan.run for plan in plans],
        jobs=jobs_of(first, "aftercorr"),
        scripts={step: f"{folder}/{path}" for step, path in scripts.items()},
        # A task of an array has no array of its own: it does all shards of its point.
        arrays=dict.fromkeys(scripts, ""),
    )
    return files


def logs_of(name: str, plan: Plan) -> str:
    """Where the arrays of a sweep write, beside the runs of its points; relative to the project root."""
    return posixpath.join(posixpath.dirname(plan.run), name, "logs")


def _directives(name: str, logs: str, plan: Plan, step: Step, tasks: int) -> list[tuple[str, str | None]]:
    """Those of the step, and which tasks there are. The log says where each task's own log is."""
    limit = f"%{plan.site.array_limit}" if plan.site.array_limit is not None else ""
    options = directives(plan, step, name, f"{logs}/{step.name}-%A_%a.log")
    return [options[0], ("array", f"0-{tasks - 1}{limit}"), *options[1:]]


def _shape(plan: Plan) -> object:
    """What all tasks of the arrays share."""
    steps = [(step.name, step.needs, step.interruptible, directives(plan, step, "", "/")) for step in plan.steps]
    return steps, plan.site.chain, plan.site.array_limit
