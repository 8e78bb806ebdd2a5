"""`lora: null`: the whole model is trained, so there is no adapter to place, to start from or to merge."""

from __future__ import annotations

from dataclasses import replace

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir


def whole_model(ir: Ir, sink: Sink) -> Ir:
    """Where the whole model is trained, refuse a merge, switch its default off, and derive what is trained."""
    if ir.spec.lora is not None:
        return ir
    if ir.spec.merge is not None and ir.given("merge"):
        sink.add(
            Diagnostic(
                "HC506",
                "`merge` folds an adapter into its base, and `lora: null` trains none",
                ir.label("merge"),
                secondary=(ir.label("lora", "trains the whole model"),),
                notes=("the checkpoints are models already; `evaluate` and `higgsc generate` take them as they are",),
                help="leave `merge` out, or write `merge: null`",
            )
        )
    ir = replace(ir, spec=ir.spec.model_copy(update={"merge": None}))
    return ir.derive(
        "training.trainable_parameters",
        ir.shape.parameter_count(),
        "every parameter of the language model",
        by="whole_model",
        inputs=("lora",),
    )
