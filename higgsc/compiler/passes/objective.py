"""What the training minimises: weights that fit the codebooks."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir


def objective(ir: Ir, sink: Sink) -> Ir:
    """Check the weights of the codebooks."""
    weights, codebooks = ir.spec.loss.codebooks, ir.shape.codebooks
    if len(weights) != codebooks:
        message = (
            f"`loss.codebooks` has {len(weights)} weight{'s' if len(weights) != 1 else ''} for {codebooks} codebooks"
        )
        equal = (*weights, *(weights[-1:] or (1.0,)) * codebooks)[:codebooks]
        help_ = f"one for each, the coarsest first: `codebooks: [{', '.join(f'{weight:g}' for weight in equal)}]`"
        sink.add(Diagnostic("HC365", message, ir.label("loss.codebooks"), help=help_))
    elif not any(weights) and ir.spec.loss.audio > 0:
        message = "every codebook has the weight 0: the voice is not learned"
        help_ = "leave `codebooks` out; to learn the text alone, write `audio: 0`"
        sink.add(Diagnostic("HC365", message, ir.label("loss.codebooks"), help=help_))
    return ir
