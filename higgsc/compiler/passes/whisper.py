"""`model.whisper`: a Whisper that can be one, whose width is known; what it rules out, and what it trains."""

from __future__ import annotations

from dataclasses import replace

from higgsc.catalog.whisper import EXAMPLE, WIDTHS
from higgsc.compiler.diagnostics import Diagnostic, Sink, did_you_mean
from higgsc.compiler.ir import Ir

_AT = "model.whisper.encoder"


def whisper(ir: Ir, sink: Sink) -> Ir:
    """Where a Whisper listens, refuse a whole model and a merge, switch the merge's default off, and derive the
    projector's width and its share in what is trained."""
    asked = ir.spec.model.whisper
    if asked is None:
        return ir
    if ir.spec.lora is None:
        sink.add(
            Diagnostic(
                "HC511",
                "`model.whisper` needs an adapter, and `lora: null` trains none",
                ir.label("model.whisper"),
                secondary=(ir.label("lora", "trains the whole model"),),
                notes=("a whole model is saved as transformers loads it, which would leave the projector out",),
                help="leave `whisper` out, or `lora: null`",
            )
        )
        return ir
    if ir.spec.merge is not None and ir.given("merge"):
        sink.add(
            Diagnostic(
                "HC512",
                "`merge` folds an adapter into its base, which has no place for what a Whisper hears",
                ir.label("merge"),
                secondary=(ir.label("model.whisper", "adds to the base's inputs"),),
                notes=("`evaluate` and `higgsc generate --adapter` take the adapter unmerged",),
                help="write `merge: null`",
            )
        )
    ir = replace(ir, spec=ir.spec.model_copy(update={"merge": None}))
    width = _width(ir, sink)
    if width is None or "training.trainable_parameters" not in ir.derived:
        return ir
    count = ir.shape.hidden_size * width
    ir = ir.derive("model.whisper.width", width, _why(ir), by="whisper", inputs=(_AT,))
    adapter = ir.derived["training.trainable_parameters"]
    return ir.derive(
        "training.trainable_parameters",
        ir.integer("training.trainable_parameters") + count,
        f"{adapter.formula}, and {ir.shape.hidden_size:,} x {width:,} of the projector",
        by="whisper",
        inputs=(*adapter.inputs, "model.whisper.width"),
    )


def whisper_width(ir: Ir) -> int | None:
    """Features that a Whisper hears of a frame, as `whisper` derived them; None where none listens."""
    return ir.integer("model.whisper.width") if "model.whisper.width" in ir.derived else None


def projector_parameters(ir: Ir) -> int:
    """Numbers of the projector, 0 where no Whisper listens."""
    return ir.shape.hidden_size * (whisper_width(ir) or 0)


def _width(ir: Ir, sink: Sink) -> int | None:
    """Features of the encoder's output: as the catalog knows it, or as the spec says; None if there is an error."""
    asked = ir.spec.model.whisper
    assert asked is not None
    name, known = asked.encoder, WIDTHS.get(asked.encoder)
    if "://" in name:
        return None  # which `paths` reports
    if name.startswith("builtin:") or "/" not in name:
        message = f"`{_AT}: {name}` is neither a hub id, `owner/name`, nor a folder"
        help_ = f"write `{EXAMPLE}`" + ("" if name.startswith("builtin:") else f", or `./{name}` for a folder")
        sink.add(Diagnostic("HC106", message, ir.label(_AT), help=help_))
        return None
    if known is not None and asked.width not in (None, known):
        message = f"`{name}` has {known:,} features, and not {asked.width:,}"
        sink.add(Diagnostic("HC513", message, ir.label("model.whisper.width"), help="leave `width` out"))
        return None
    if known is None and asked.width is None:
        message = f"how wide `{name}` is, is not known here"
        help_ = "write `width:` with `d_model` of its config.json"
        if name.startswith("openai/") and (meant := did_you_mean(name, sorted(WIDTHS))):
            help_ = meant
        sink.add(Diagnostic("HC513", message, ir.label(_AT), help=help_))
        return None
    return known or asked.width


def _why(ir: Ir) -> str:
    asked = ir.spec.model.whisper
    assert asked is not None
    return "as given" if asked.encoder not in WIDTHS else f"of {asked.encoder}"
