"""Environment variables of a step, the same for every launcher."""

from __future__ import annotations

from higgsc.compiler.plan import SitePlan, Step


def environment(step: Step, site: SitePlan) -> dict[str, str]:
    """The variables that a step's processes need.

    `OMP_NUM_THREADS` is the cores of a node shared by its processes; without a known number of cores torchrun's own
    default (one thread) stands. `expandable_segments` keeps packed batches of changing length from fragmenting the
    GPU's memory (PyTorch, CUDA semantics: memory management).
    """
    variables = {"PYTHONUNBUFFERED": "1"}
    if site.cpus_per_node is not None:
        variables["OMP_NUM_THREADS"] = str(max(1, site.cpus_per_node // step.resources.processes_per_node))
    if step.resources.gpus_per_node:
        variables["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return variables
