"""`slurm/`: one job script a step, and `submit.sh` that chains them."""

from __future__ import annotations

from higgsc.compiler.plan import Plan, SitePlan, Step
from higgsc.emit.build import Build
from higgsc.emit.environment import environment
from higgsc.emit.shell import render


def slurm(build: Build) -> dict[str, str]:
    """Emit the job scripts and the script that submits them."""
    plan = build.plan
    files = {}
    for step in plan.steps:
        files[f"slurm/{step.name}.sbatch"] = render(
            "slurm/step.sbatch.j2",
            plan=plan,
            step=step,
            path=f"{plan.build}/slurm/{step.name}.sbatch",
            directives=_directives(plan, step),
            environment=lambda step: environment(step, plan.site),
        )
    files["slurm/submit.sh"] = render(
        "slurm/submit.sh.j2",
        plan=plan,
        root=build.root_from("slurm"),
        logs=f"{plan.run}/logs",
        scripts={step.name: f"{plan.build}/slurm/{step.name}.sbatch" for step in plan.steps},
    )
    return files


def _directives(plan: Plan, step: Step) -> list[tuple[str, str | None]]:
    """`#SBATCH` options: one homogeneous allocation, one task a node (torchrun starts the workers)."""
    site: SitePlan = plan.site
    resources = step.resources
    options: list[tuple[str, str | None]] = [
        ("job-name", f"{plan.name}-{step.name}"),
        ("nodes", str(resources.nodes)),
        ("ntasks-per-node", "1"),
    ]
    if resources.gpus_per_node:
        options.append(("gpus-per-node", str(resources.gpus_per_node)))
    if site.cpus_per_node is not None:
        options.append(("cpus-per-task", str(_cpus(plan, step, site.cpus_per_node))))
    if site.exclusive and resources.world_size > 1:
        options += [("exclusive", None), ("mem", "0")]
    options.append(("time", site.time_limit))
    for name in ("partition", "account", "qos"):
        if (value := getattr(site, name)) is not None:
            options.append((name, value))
    return [*options, ("output", f"{plan.run}/logs/{step.name}-%j.log"), ("open-mode", "append")]


def _cpus(plan: Plan, step: Step, cpus_per_node: int) -> int:
    """A step on part of a node gets its GPUs' share of the cores."""
    most = max(other.resources.processes_per_node for other in plan.steps)
    return max(1, cpus_per_node * step.resources.processes_per_node // most)
