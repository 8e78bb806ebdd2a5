"""Batch arithmetic: how many micro-batches a rank processes for one optimizer step."""

from __future__ import annotations

from higgsc.catalog.estimate import fits
from higgsc.catalog.setup import Sample
from higgsc.compiler.batch import DEFAULT_SAMPLES, DEFAULT_TOKENS, Batch, batch_of, most_that_divides, ranks_of, unit_of
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import gpu_of, setup_of

MAX_MICRO = 4096
"""Larger micro-batches are not searched for one that divides."""


def batch(ir: Ir, sink: Sink) -> Ir:
    """Derive `training.accumulation` = global batch / (data-parallel ranks x micro-batch); it must be whole."""
    if not _same_unit(ir, sink) or "parallelism.replicate" not in ir.derived:
        return ir  # the unit or the mesh is wrong, and has been reported
    found, ranks = batch_of(ir), ranks_of(ir)
    whole, micro, unit = found.whole, found.micro, found.unit
    at_once = ranks * micro
    many = f"{ranks} {'ranks' if ir.spec.parallelism.tensor == 1 else 'tensor groups'}"
    at = f"training.global_batch.{unit}"
    if whole % at_once:
        sink.add(
            Diagnostic(
                "HC311",
                f"a global batch of {whole} {unit} does not divide into micro-batches of {micro} on {many}",
                ir.label(at, f"{ranks} x {micro} = {at_once} does not divide {whole}"),
                secondary=(Label(ir.label("hardware").span, many),),
                help=_way_out(ir, found, ranks),
            )
        )
        return ir  # what is counted with another batch would contradict the way out
    if unit == "tokens":
        _holds_longest(ir, sink, micro)
    inputs = (at, "parallelism.replicate", "parallelism.shard", f"training.micro_batch.{unit}")
    if getattr(ir.spec.training.micro_batch, unit) is None:
        usual = f"{DEFAULT_SAMPLES} samples, where none are given"
        if unit == "tokens":
            usual = f"{whole} tokens / {many}, in as few parts as have at most {DEFAULT_TOKENS:,}"
        ir = ir.derive(f"training.micro_batch.{unit}", micro, usual, by="batch", inputs=inputs[:3])
    formula = f"{whole} {unit} / ({many} x {micro} per micro-batch)"
    return ir.derive("training.accumulation", whole // at_once, formula, by="batch", inputs=inputs)


def _same_unit(ir: Ir, sink: Sink) -> bool:
    """Whether both batches are counted in one unit, the same; says so if not."""
    whole, micro, unit = "training.global_batch", "training.micro_batch", unit_of(ir)
    if unit is None:
        if ir.spec.training.global_batch.samples is None:
            message, help_ = "the global batch has no size", "write `{samples: 128}`, or `{tokens: 131072}`"
            sink.add(Diagnostic("HC312", message, ir.label(whole), help=help_))
            return False
        message = "the global batch is given both in samples and in tokens"
        other = Label(ir.label(f"{whole}.samples").span, "the other size")
        help_ = "keep one of the two; `samples: null` takes an inherited one back"
        sink.add(Diagnostic("HC312", message, ir.label(f"{whole}.tokens"), (other,), help=help_))
        return False
    wrong = "samples" if unit == "tokens" else "tokens"
    if getattr(ir.spec.training.micro_batch, wrong) is None:
        return True
    message = f"the micro-batch is given in {wrong}, the global batch in {unit}"
    counted = Label(ir.label(f"{whole}.{unit}").span, f"in {unit}")
    size = f"samples: {DEFAULT_SAMPLES}" if unit == "samples" else f"tokens: {DEFAULT_TOKENS}"
    help_ = f"count both in the same: `micro_batch: {{{size}}}`; `{wrong}: null` takes an inherited size back"
    sink.add(Diagnostic("HC312", message, ir.label(f"{micro}.{wrong}"), (counted,), help=help_))
    return False


def _holds_longest(ir: Ir, sink: Sink, micro: int) -> None:
    """Warn where a row is shorter than the longest samples that the data may have."""
    seconds = ir.spec.data.limits.max_seconds
    longest = Sample.of_seconds(seconds, seconds).tokens
    if longest > micro:
        message = (
            f"a row of {micro:,} tokens does not hold a sample of two clips of {seconds:g} s, of about {longest:,}"
        )
        limit = Label(ir.label("data.limits.max_seconds").span, "the longest clips")
        given = ir.given("training.micro_batch.tokens")
        at = "training.micro_batch.tokens" if given else "training.global_batch.tokens"
        help_ = "the training refuses to start if there is one; take longer rows, or a smaller `max_seconds`"
        sink.add(Diagnostic("HC313", message, ir.label(at), (limit,), help=help_))


def _way_out(ir: Ir, found: Batch, ranks: int) -> str:
    """Batches that divide; of those, what the GPU has the memory for, where the spec names one."""
    gpu, whole, micro, unit = gpu_of(ir), found.whole, found.micro, found.unit

    def fitting(size: int, of: int) -> bool:
        tried = Batch(unit, of, size)
        longest = tried.longest(ir.spec.data.limits.max_seconds)
        return gpu is None or fits(setup_of(ir, of // (ranks * size)), longest, tried.count, gpu)

    if unit == "samples":
        divisors = [d for d in range(min(micro, MAX_MICRO, whole // ranks), 0, -1) if whole % (ranks * d) == 0]
    else:
        near = most_that_divides(whole, ranks, micro)
        divisors = [near] if whole % (ranks * near) == 0 else []
    divisor = next((d for d in divisors if fitting(d, whole)), None)
    smaller = f"`micro_batch: {{{unit}: {divisor}}}`" if divisor else None
    multiples = [n * ranks * micro for n in (whole // (ranks * micro), whole // (ranks * micro) + 1) if n]
    if smaller is not None and not fitting(micro, multiples[-1]):
        return f"write {smaller}, which divides and fits the GPU"
    choices = f"a global batch of {' or '.join(map(str, multiples))} {unit} divides"
    return f"{choices}, and so would {smaller}" if smaller else choices
