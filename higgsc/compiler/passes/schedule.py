"""The course of a run: warm-up, checkpoints and evaluation have to fit its length and its data."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir

UNLIKELY_RATE = 0.1
"""Learning rate from which AdamW on an adapter runs away; a hundred times what is usual."""


def schedule(ir: Ir, sink: Sink) -> Ir:
    """Check the warm-up and checkpoint interval against the length in steps, and who needs held-out data."""
    spec = ir.spec
    steps = spec.training.steps
    if (spec.training.epochs is None) == (steps is None):
        _need_one_length(ir, sink)
    if steps is not None:
        length = Label(ir.label("training.steps").span, f"{steps} steps in all")
        if spec.training.warmup_steps >= steps:
            sink.add(
                Diagnostic(
                    "HC321",
                    f"a warm-up of {spec.training.warmup_steps} steps leaves nothing of a training of {steps}",
                    ir.label("training.warmup_steps"),
                    secondary=(length,),
                    help=f"`warmup_steps: {steps // 10}` is a tenth of the training",
                )
            )
        if spec.checkpoint.every_steps > steps and ir.given("checkpoint.every_steps"):
            sink.add(
                Diagnostic(
                    "HC321",
                    f"a checkpoint every {spec.checkpoint.every_steps} steps is never due in {steps}",
                    ir.label("checkpoint.every_steps"),
                    secondary=(length,),
                    help=f"`every_steps: {max(1, steps // 4)}` would write four",
                )
            )
    if spec.training.learning_rate >= UNLIKELY_RATE:
        sink.add(
            Diagnostic(
                "HC324",
                f"a learning rate of {spec.training.learning_rate:g} is far above what LoRA is trained with",
                ir.label("training.learning_rate"),
                help="`1e-4` is usual; a minus may be missing in the exponent",
            )
        )
    limits = spec.data.limits
    if limits.min_seconds >= limits.max_seconds:
        at = "data.limits.min_seconds" if ir.given("data.limits.min_seconds") else "data.limits.max_seconds"
        sink.add(
            Diagnostic(
                "HC325",
                f"no recording has at least {limits.min_seconds:g} and at most {limits.max_seconds:g} seconds",
                ir.label(at),
                help="`min_seconds` has to be below `max_seconds`",
            )
        )
    if spec.data.validation.fraction == 0:
        _need_held_out(ir, sink)
    if spec.evaluate is not None and spec.merge is None:
        sink.add(
            Diagnostic(
                "HC323",
                "`evaluate` speaks with the merged model, but `merge` is switched off",
                ir.label("merge"),
                secondary=(ir.label("evaluate"),) if ir.given("evaluate") else (),
                help="set `evaluate: null` too, or give `merge`",
            )
        )
    return ir


def _need_one_length(ir: Ir, sink: Sink) -> None:
    if ir.spec.training.steps is None:
        sink.add(
            Diagnostic(
                "HC320",
                "`training` says neither how many epochs nor how many steps",
                ir.label("training.steps"),
                help="add `epochs:` or `steps:`",
            )
        )
        return
    sink.add(
        Diagnostic(
            "HC320",
            "`training` is given both in epochs and in steps",
            ir.label("training.steps"),
            secondary=(Label(ir.label("training.epochs").span, "the other length"),),
            help="keep one; `epochs: null` takes an inherited value back",
        )
    )


def _need_held_out(ir: Ir, sink: Sink) -> None:
    held_out = Label(ir.label("data.validation.fraction").span, "no validation samples")
    if ir.spec.evaluate is not None:
        sink.add(
            Diagnostic(
                "HC322",
                "nothing is held out to evaluate on",
                ir.label("evaluate") if ir.given("evaluate") else held_out,
                secondary=(held_out,) if ir.given("evaluate") else (),
                help="hold out a fraction, or set `evaluate: null`",
            )
        )
    if ir.spec.merge is not None and ir.spec.merge.select == "best":
        sink.add(
            Diagnostic(
                "HC322",
                "nothing is held out to tell the best checkpoint by",
                ir.label("merge.select") if ir.given("merge.select") else held_out,
                secondary=(held_out,) if ir.given("merge.select") else (),
                help="hold out a fraction, or set `merge: {select: last}`",
            )
        )
