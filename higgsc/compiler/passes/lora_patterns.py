"""Ranks and alphas of single modules: every pattern has to decide for at least one adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from higgsc.compiler.adapter import adapter_of, matching
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink, did_you_mean
from higgsc.compiler.ir import Ir
from higgsc.spec.training import Lora


def lora_patterns(ir: Ir, sink: Sink) -> Ir:
    """Refuse patterns of `lora.rank_pattern` and `lora.alpha_pattern` that decide nothing; derive what is trained."""
    lora, adapter = ir.spec.lora, adapter_of(ir)
    if lora is None or adapter is None:
        return ir
    modules = adapter.modules(ir.shape)
    if not modules:
        return ir  # no adapter at all, which has been reported
    for key, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        decided: dict[str, str] = {}
        for pattern in patterns:
            found = matching(pattern, modules)
            new = [name for name in found if name not in decided]
            if not new and not sink.full:
                _report(ir, sink, f"lora.{key}", pattern, found, decided, modules)
            decided |= dict.fromkeys(new, pattern)
    return ir.derive(
        "training.trainable_parameters",
        sum(adapter.parameters(ir.shape).values()),
        _formula(lora, len(modules)),
        by="lora_patterns",
        inputs=("lora.rank", "lora.module_count"),
    )


def _formula(lora: Lora, modules: int) -> str:
    rank = f"rank {lora.rank}" if not lora.rank_pattern else f"rank {lora.rank} or that of a pattern"
    each = f"{rank} x (in + out){' + out' if lora.dora else ''}, summed over {modules} modules"
    return each + "".join(f", and the whole {head} head" for head in lora.full_heads)


def _report(
    ir: Ir, sink: Sink, at: str, pattern: str, found: list[str], decided: Mapping[str, str], modules: Iterable[str]
) -> None:
    node, _ = ir.tree.find((*at.split("."), pattern))
    label = Label(node.place)
    if found:
        earlier, _ = ir.tree.find((*at.split("."), decided[found[0]]))
        sink.add(
            Diagnostic(
                "HC505",
                f"`{pattern}` in `{at}` decides nothing: other patterns stand before it",
                label,
                secondary=(Label(earlier.place, "the first pattern that matches counts"),),
                help="put the narrower pattern first",
            )
        )
        return
    beyond = matching(pattern, ir.shape.linear_modules())
    words = {".".join(name.split(".")[-depth:]) for name in modules for depth in (1, 2)}
    help_ = f"add `{pattern}` to `lora.targets`" if beyond else did_you_mean(pattern, sorted(words))
    what = f"`{beyond[0]}`, which gets no adapter" if beyond else "no module that gets an adapter"
    sink.add(
        Diagnostic(
            "HC505",
            f"`{pattern}` in `{at}` matches {what}",
            label,
            help=help_ or "patterns are written as in `lora.targets`, such as `self_attn.q_proj` or `audio_mlp.*`",
        )
    )
