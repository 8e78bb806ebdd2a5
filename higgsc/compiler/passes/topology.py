"""The mesh: replicate x shard has to be the number of processes."""

from __future__ import annotations

import re

from higgsc.catalog.gpus import GPUS, find_gpu
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink, did_you_mean
from higgsc.compiler.ir import Ir
from higgsc.spec.hardware import HardwareShape


def topology(ir: Ir, sink: Sink) -> Ir:
    """Derive `hardware.processes` and, if the mesh fits, `parallelism.replicate`; check the GPU type."""
    shape, mesh = ir.spec.hardware, ir.spec.parallelism
    if shape.device == "cuda" and shape.gpu is not None and find_gpu(shape.gpu) is None:
        sink.add(
            Diagnostic(
                "HC302",
                f"unknown GPU `{shape.gpu}`",
                ir.label("hardware.gpu" if ir.given("hardware.gpu") else "hardware"),
                notes=(f"known: {', '.join(GPUS)}",),
                help=_gpu_instead(shape),
            )
        )
    world = shape.world_size
    ir = ir.derive(
        "hardware.processes",
        world,
        f"{shape.nodes} nodes x {shape.gpus_per_node} per node",
        by="topology",
        inputs=("hardware.nodes", "hardware.gpus_per_node"),
    )
    if mesh.replicate == "auto":
        if world % mesh.shard:
            _refuse(ir, sink, f"shard {mesh.shard} does not divide {world} processes", "parallelism.shard", world)
            return ir
        formula = f"{world} processes / shard {mesh.shard}"
        return ir.derive(
            "parallelism.replicate",
            world // mesh.shard,
            formula,
            by="topology",
            inputs=("hardware.processes", "parallelism.shard"),
        )
    if mesh.replicate * mesh.shard != world:
        _refuse(
            ir,
            sink,
            f"replicate {mesh.replicate} x shard {mesh.shard} = {mesh.replicate * mesh.shard}, "
            f"but the hardware has {world} processes",
            "parallelism.replicate",
            world,
        )
        return ir
    return ir.derive("parallelism.replicate", mesh.replicate, "as given", by="topology")


def _refuse(ir: Ir, sink: Sink, message: str, path: str, world: int) -> None:
    shard = ir.spec.parallelism.shard
    fitting = max(d for d in range(1, min(shard, world) + 1) if world % d == 0)
    sink.add(
        Diagnostic(
            "HC301",
            message,
            ir.label(path),
            secondary=(Label(ir.label("hardware").span, f"{world} processes"),),
            help=f"`shard: {fitting}` leaves `replicate: {world // fitting}`, which is what `auto` stands for",
        )
    )


_REAL = re.compile(r"(?i)(nvidia|tesla|amd)?-?((rtx-?)?[abhlptv][0-9]{1,4}s?|g[bh][0-9]{3}|rtx-?[0-9]{4}|mi[0-9]{3}x?)")
"""Names that GPUs have."""


def _gpu_instead(shape: HardwareShape) -> str:
    """The GPU that was meant by a name that is none: with its memory left out, or with more words than needed."""
    name = shape.gpu or ""
    plain = name.casefold().replace("-", "").replace("_", "")
    sizes = [gpu for gpu in GPUS if gpu.casefold().replace("-", "").startswith(plain)]
    if sizes:
        return f"write {' or '.join(f'`{gpu}`' for gpu in sizes)}"
    without = f"`{shape.nodes}x{shape.gpus_per_node}` names no type, and no memory is checked"
    if _REAL.fullmatch(name) or plain in ("2080", "3080", "4080", "5090"):
        return f"it is not in the catalogue; {without}"
    within = [gpu for gpu in GPUS if len(gpu) > 2 and plain.startswith(gpu.casefold().replace("-", ""))]
    if within:
        return f"did you mean `{max(within, key=len)}`?"
    return did_you_mean(name, GPUS) or without
