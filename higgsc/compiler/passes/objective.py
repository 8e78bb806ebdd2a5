"""What the training minimises: weights that fit the codebooks, schedules that can be followed, voices to compare."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from higgsc.compiler.batch import batch_of, ranks_of
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir


def objective(ir: Ir, sink: Sink) -> Ir:
    """Check the weights of the codebooks, the schedules of weights and of lengths, and the contrastive loss."""
    loss = ir.spec.loss
    if _fits(ir, sink, "loss.codebooks", loss.codebooks) and not any(loss.codebooks) and loss.audio > 0:
        message = "every codebook has the weight 0: the voice is not learned"
        help_ = "leave `codebooks` out; to learn the text alone, write `audio: 0`"
        sink.add(Diagnostic("HC365", message, ir.label("loss.codebooks"), help=help_))
    if loss.schedule is not None:
        _schedule(ir, sink)
    if loss.contrastive is not None:
        _voices(ir, sink)
    _lengths(ir, sink)
    return ir


def _fits(ir: Ir, sink: Sink, at: str, weights: Sequence[float]) -> bool:
    codebooks = ir.shape.codebooks
    if len(weights) == codebooks:
        return True
    equal = (*weights, *(tuple(weights[-1:]) or (1.0,)) * codebooks)[:codebooks]
    help_ = f"one for each, the coarsest first: `[{', '.join(f'{weight:g}' for weight in equal)}]`"
    message = f"`{at}` holds {len(weights)} numbers for {codebooks} codebooks"
    sink.add(Diagnostic("HC365", message, ir.label(at), help=help_))
    return False


def _schedule(ir: Ir, sink: Sink) -> None:
    loss = ir.spec.loss
    assert loss.schedule is not None
    for name in ("text", "audio", "contrastive", "codebooks"):
        path = f"loss.schedule.{name}"
        steps = [point.step for point in getattr(loss.schedule, name)]
        for number, (before, step) in enumerate(pairwise(steps), start=1):
            if step <= before:
                message = f"step {step} comes after step {before}, but is not later"
                earlier = Label(ir.label(f"{path}.{number - 1}.step").span, "the point before it")
                help_ = "the points of a schedule stand in the order of their steps"
                sink.add(Diagnostic("HC366", message, ir.label(f"{path}.{number}.step"), (earlier,), help=help_))
    for number, point in enumerate(loss.schedule.codebooks):
        at = f"loss.schedule.codebooks.{number}.factors"
        if _fits(ir, sink, at, point.factors) and not any(
            factor * weight for factor, weight in zip(point.factors, loss.codebooks, strict=False)
        ):
            message = f"at step {point.step} every codebook has the weight 0"
            sink.add(
                Diagnostic("HC366", message, ir.label(at), help="`[1, 0, 0, 0, 0, 0, 0, 0]` is the coarsest alone")
            )
    if loss.schedule.contrastive and loss.contrastive is None:
        message = "a schedule for the contrastive loss, which is off"
        help_ = "`contrastive: {weight: 0.1}` in `loss` turns it on"
        sink.add(Diagnostic("HC366", message, ir.label("loss.schedule.contrastive"), help=help_))


def _voices(ir: Ir, sink: Sink) -> None:
    """A voice can only be told from others that are looked at together with it."""
    if "training.accumulation" not in ir.derived:
        return  # the mesh or the batch is wrong, and has been reported
    batch = batch_of(ir)
    if batch.unit == "tokens":
        message = "the contrastive loss compares as many samples on every rank, and rows of tokens do not hold as many"
        label = Label(ir.label("training.global_batch.tokens").span, "counted in tokens")
        help_ = "write `global_batch: {samples: 128}`"
        sink.add(Diagnostic("HC367", message, ir.label("loss.contrastive"), (label,), help=help_))
    elif batch.micro * ranks_of(ir) == 1:
        message = "the contrastive loss has one sample at a time, and no other voice to tell it from"
        micro = Label(ir.label("training.micro_batch.samples").span, "one sample on one rank")
        help_ = "`micro_batch: {samples: 4}` compares four"
        sink.add(Diagnostic("HC367", message, ir.label("loss.contrastive"), (micro,), help=help_))


def _lengths(ir: Ir, sink: Sink) -> None:
    curriculum, limits, steps = ir.spec.training.curriculum, ir.spec.data.limits, ir.spec.training.steps
    if curriculum is None:
        return
    if not limits.min_seconds <= curriculum.start_seconds < limits.max_seconds:
        message = (
            f"the curriculum begins with samples of {curriculum.start_seconds:g} s, "
            f"but there are only samples of {limits.min_seconds:g} to {limits.max_seconds:g} s"
        )
        middle = (limits.min_seconds + limits.max_seconds) / 4
        help_ = f"`start_seconds: {middle:.2g}` is short; without `curriculum`, all lengths come from the start"
        sink.add(Diagnostic("HC325", message, ir.label("training.curriculum.start_seconds"), help=help_))
    if steps is not None and curriculum.steps >= steps:
        message = f"a curriculum of {curriculum.steps} steps never comes to the longest samples in {steps}"
        length = Label(ir.label("training.steps").span, f"{steps} steps in all")
        help_ = f"`steps: {max(1, steps // 4)}` is a quarter of the training"
        sink.add(Diagnostic("HC321", message, ir.label("training.curriculum.steps"), (length,), help=help_))
