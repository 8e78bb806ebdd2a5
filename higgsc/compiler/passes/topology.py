"""The hardware: how many processes there are, and whether the GPU is known."""

from __future__ import annotations

import re

from higgsc.catalog.gpus import GPUS, find_gpu
from higgsc.compiler.diagnostics import Diagnostic, Sink, did_you_mean
from higgsc.compiler.ir import Ir
from higgsc.spec.hardware import HardwareShape


def topology(ir: Ir, sink: Sink) -> Ir:
    """Derive `hardware.processes`; check the GPU type."""
    shape = ir.spec.hardware
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
    return ir.derive(
        "hardware.processes",
        world,
        f"{shape.nodes} nodes x {shape.gpus_per_node} per node",
        by="topology",
        inputs=("hardware.nodes", "hardware.gpus_per_node"),
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
