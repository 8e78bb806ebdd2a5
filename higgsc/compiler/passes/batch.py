"""Batch arithmetic: how many micro-batches a rank processes for one optimizer step."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir

MAX_MICRO = 4096
"""Larger micro-batches are not searched for one that divides."""


def batch(ir: Ir, sink: Sink) -> Ir:
    """Derive `training.accumulation` = global batch / (data-parallel ranks x micro-batch); it must be whole."""
    if "parallelism.replicate" not in ir.derived:
        return ir  # the mesh is wrong, and has been reported
    wanted = ir.spec.training.global_batch.samples
    micro = ir.spec.training.micro_batch.samples
    ranks = ir.integer("parallelism.replicate") * ir.spec.parallelism.shard
    at_once = ranks * micro
    if wanted % at_once:
        below, above = wanted // at_once * at_once, (wanted // at_once + 1) * at_once
        choices = f"{below} or {above}" if below else f"{above}"
        divisor = max((d for d in range(1, min(micro, MAX_MICRO) + 1) if wanted % (ranks * d) == 0), default=None)
        sink.add(
            Diagnostic(
                "HC311",
                f"a global batch of {wanted} samples does not divide into micro-batches of {micro} on {ranks} ranks",
                ir.label("training.global_batch.samples", f"{ranks} x {micro} = {at_once} does not divide {wanted}"),
                secondary=(Label(ir.label("hardware").span, f"{ranks} ranks"),),
                help=f"a global batch of {choices} samples divides"
                + (f", and so would `micro_batch: {{samples: {divisor}}}`" if divisor else ""),
            )
        )
        return ir  # what is counted with another batch would contradict the way out
    formula = f"{wanted} samples / ({ranks} ranks x {micro} per micro-batch)"
    inputs = (
        "training.global_batch.samples",
        "parallelism.replicate",
        "parallelism.shard",
        "training.micro_batch.samples",
    )
    return ir.derive("training.accumulation", max(1, wanted // at_once), formula, by="batch", inputs=inputs)
