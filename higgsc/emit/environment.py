"""Environment variables of a step, the same for every launcher."""

from __future__ import annotations

from higgsc.compiler.plan import Step
from higgsc.spec.site import Site


def environment(step: Step, site: Site) -> dict[str, str]:
    """The variables that a step's processes need.

    `OMP_NUM_THREADS` is the cores of a node shared by its processes; without a known number of cores torchrun's own
    default (one thread) stands. `expandable_segments` keeps packed batches of changing length from fragmenting the
    GPU's memory (PyTorch, CUDA semantics: memory management). What the site says itself wins.
    """
    variables = {"PYTHONUNBUFFERED": "1"}
    if site.cpus_per_node is not None:
        variables["OMP_NUM_THREADS"] = str(max(1, site.cpus_per_node // step.resources.processes_per_node))
    if step.resources.gpus_per_node:
        variables["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if step.resources.nodes > 1:
        if site.network_interface is not None:
            variables["NCCL_SOCKET_IFNAME"] = variables["GLOO_SOCKET_IFNAME"] = site.network_interface
        if site.infiniband is not None:
            variables["NCCL_IB_HCA"] = site.infiniband
    if site.hf_home is not None:
        variables["HF_HOME"] = site.hf_home
    return {**variables, **site.environment}
