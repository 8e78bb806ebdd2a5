"""The models that measure speech: names that can be some, and something for them to listen to."""

from __future__ import annotations

from higgsc.compiler.diagnostics import Diagnostic, Sink
from higgsc.compiler.ir import Ir

EXAMPLES = {"recogniser": "openai/whisper-large-v3", "similarity": "microsoft/wavlm-base-plus-sv"}


def judges(ir: Ir, sink: Sink) -> Ir:
    """Refuse names that are neither a hub id nor a folder; warn where nothing is spoken that could be measured."""
    evaluate = ir.spec.evaluate
    if evaluate is None:
        return ir
    for option, example in EXAMPLES.items():
        at, name = f"evaluate.{option}", getattr(evaluate, option)
        if name is None:
            continue
        if name.startswith("builtin:") or "/" not in name:
            message = f"`{at}: {name}` is neither a hub id, `owner/name`, nor a folder"
            help_ = f"write `{example}`" + ("" if name.startswith("builtin:") else f", or `./{name}` for a folder")
            sink.add(Diagnostic("HC106", message, ir.label(at), help=help_))
        elif evaluate.samples == 0:
            message = f"`{at}` has nothing to listen to: `evaluate.samples` is 0"
            help_ = f"write `samples: 8`, or `{option}: null`"
            sink.add(Diagnostic("HC424", message, ir.label(at), (ir.label("evaluate.samples"),), help=help_))
    return ir
