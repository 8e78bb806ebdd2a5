"""The course of a run: warm-up, checkpoints and evaluation have to fit its length and its data."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.reading.position import COMMAND_LINE, Span


def schedule(ir: Ir, sink: Sink) -> Ir:
    """Check the warm-up and checkpoint interval against the length in steps, and who needs held-out data."""
    spec = ir.spec
    steps = spec.training.steps
    if (spec.training.epochs is None) == (steps is None):
        _need_one_length(ir, sink)
    elif steps is not None:
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
    every, keep = spec.checkpoint.every_steps, spec.checkpoint.keep_every
    if keep is not None and keep % every:
        sink.add(
            Diagnostic(
                "HC321",
                f"of checkpoints every {every} steps, few have a step that is a multiple of {keep}",
                ir.label("checkpoint.keep_every"),
                secondary=(ir.label("checkpoint.every_steps"),) if ir.given("checkpoint.every_steps") else (),
                help=f"`keep_every: {max(1, round(keep / every)) * every}` is a multiple of `every_steps`",
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
    unmerged = spec.lora is None or spec.model.whisper is not None
    if spec.evaluate is not None and spec.merge is None and not unmerged:
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
                Label(_place(ir, "training")),
                help="add `epochs: 3`, or `steps: 1000`, to `training`",
            )
        )
        return
    if ir.label("training.steps").span.source.name == COMMAND_LINE:
        _both_lengths(ir, sink, "add `--set training.epochs=null`")
        return
    if ir.label("training.epochs").span.source.name == COMMAND_LINE:
        _both_lengths(ir, sink, "add `--set training.steps=null`")
        return
    steps, epochs = ir.label("training.steps").span, ir.label("training.epochs").span
    # Which of the two is inherited: the one in another file than the spec itself.
    own = ir.spec_path
    inherited = next((key for key, at in (("epochs", epochs), ("steps", steps)) if at.source.name != own), None)
    both = inherited is None or steps.source is epochs.source
    sink.add(
        Diagnostic(
            "HC320",
            "`training` is given both in epochs and in steps",
            Label(epochs if inherited == "steps" and not both else steps),
            secondary=(Label(steps if inherited == "steps" and not both else epochs, "the other length"),),
            help="keep one of the two" if both else f"`{inherited}: null` takes the inherited length back",
        )
    )


def _both_lengths(ir: Ir, sink: Sink, help_: str) -> None:
    message = "`training` is given both in epochs and in steps"
    other = Label(ir.label("training.epochs").span, "the other length")
    sink.add(Diagnostic("HC320", message, ir.label("training.steps"), (other,), help=help_))


def _need_held_out(ir: Ir, sink: Sink) -> None:
    """One message for all that needs held-out samples."""
    evaluate, merge = ir.spec.evaluate, ir.spec.merge
    by = ir.spec.checkpoint.best
    best = merge is not None and merge.select == "best" and by.startswith("validation/")
    needs = ["to evaluate on"] if evaluate is not None else []
    needs += ["to tell the best checkpoint by"] if best else []
    if not needs:
        return
    places = [
        at for at, asked in (("evaluate", evaluate is not None), ("merge.select", best)) if asked and ir.given(at)
    ]
    ways = ["`evaluate: null`"] if evaluate is not None else []
    ways += ["`merge: {select: last}`"] if best else []
    sink.add(
        Diagnostic(
            "HC322",
            f"nothing is held out {' and '.join(needs)}",
            Label(ir.label("data.validation.fraction").span, "no validation samples"),
            secondary=tuple(ir.label(at, "needs some") for at in places),
            help=f"hold out a share, `fraction: 0.02`, or set {' and '.join(ways)}",
        )
    )


def _place(ir: Ir, path: str) -> Span:
    """The key at a path, or the value where it has none."""
    node = ir.tree.at(path)
    return node.place if node is not None else ir.label(path).span
