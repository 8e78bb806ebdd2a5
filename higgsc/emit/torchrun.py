"""`torchrun/run.sh`: the plan without a scheduler, on this machine or by hand on each node."""

from __future__ import annotations

from higgsc.compiler.plan import Plan
from higgsc.emit.build import Build
from higgsc.emit.environment import environment
from higgsc.emit.shell import render


def torchrun(build: Build) -> dict[str, str]:
    """Emit the script."""
    plan: Plan = build.plan
    text = render(
        "torchrun/run.sh.j2",
        plan=plan,
        names=[step.name for step in plan.steps],
        nodes=max(step.resources.nodes for step in plan.steps),
        root=build.root_from("torchrun"),
        environment=lambda step: environment(step, plan.site),
    )
    return {"torchrun/run.sh": text}
