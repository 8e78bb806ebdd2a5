"""Batch arithmetic: how many micro-batches a rank processes for one optimizer step."""

from __future__ import annotations

from higgsc.catalog.estimate import fits
from higgsc.catalog.setup import Sample
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import gpu_of, setup_of

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
    many = f"{ranks} {'ranks' if ir.spec.parallelism.tensor == 1 else 'tensor groups'}"
    if wanted % at_once:
        sink.add(
            Diagnostic(
                "HC311",
                f"a global batch of {wanted} samples does not divide into micro-batches of {micro} on {many}",
                ir.label("training.global_batch.samples", f"{ranks} x {micro} = {at_once} does not divide {wanted}"),
                secondary=(Label(ir.label("hardware").span, many),),
                help=_way_out(ir, wanted, ranks, micro),
            )
        )
        return ir  # what is counted with another batch would contradict the way out
    formula = f"{wanted} samples / ({many} x {micro} per micro-batch)"
    inputs = (
        "training.global_batch.samples",
        "parallelism.replicate",
        "parallelism.shard",
        "training.micro_batch.samples",
    )
    return ir.derive("training.accumulation", max(1, wanted // at_once), formula, by="batch", inputs=inputs)


def _way_out(ir: Ir, wanted: int, ranks: int, micro: int) -> str:
    """Batches that divide; of those, what the GPU has the memory for, where the spec names one."""
    gpu = gpu_of(ir)
    longest = Sample.of_seconds(ir.spec.data.limits.max_seconds, ir.spec.data.limits.max_seconds)

    def fitting(samples: int, of: int) -> bool:
        return gpu is None or fits(setup_of(ir, of // (ranks * samples)), longest, samples, gpu)

    divisors = [d for d in range(min(micro, MAX_MICRO, wanted // ranks), 0, -1) if wanted % (ranks * d) == 0]
    divisor = next((d for d in divisors if fitting(d, wanted)), None)
    smaller = f"`micro_batch: {{samples: {divisor}}}`" if divisor else None
    multiples = [n * ranks * micro for n in (wanted // (ranks * micro), wanted // (ranks * micro) + 1) if n]
    if smaller is not None and not fitting(micro, multiples[-1]):
        return f"write {smaller}, which divides and fits the GPU"
    choices = f"a global batch of {' or '.join(map(str, multiples))} samples divides"
    return f"{choices}, and so would {smaller}" if smaller else choices
