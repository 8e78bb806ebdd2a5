"""LoRA targets against the module tree: every target has to match linear modules of the model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache

from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape
from higgsc.compiler.adapter import HEADS, matching
from higgsc.compiler.diagnostics import Diagnostic, Sink, did_you_mean
from higgsc.compiler.ir import Ir

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_TEXT_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_AUDIO_FFN = ("audio_mlp.gate_proj", "audio_mlp.up_proj", "audio_mlp.down_proj")

PRESETS: dict[str, tuple[str, ...]] = {
    "comprehensive": (*_ATTENTION, *_TEXT_FFN, *_AUDIO_FFN),
    "audio_focused": (*_AUDIO_FFN, "self_attn.q_proj", "self_attn.v_proj"),
    "attention_only": _ATTENTION,
}

FOREIGN_HEADS = {
    "audio_head.projector.linear": "audio",
    "audio_decoder_proj.audio_lm_head": "audio",
    "audio_decoder_proj.text_lm_head": "text",
    "audio_head": "audio",
    "lm_head": "text",
}
"""Names of output heads in other code bases, and what `lora.heads` calls them."""
FOREIGN = {
    "audio_encoder_proj.linear": "leaving it out? the released model has no audio encoder",
    **dict.fromkeys(
        ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "W_pack", "in_proj"),
        "`self_attn.q_proj`, `self_attn.k_proj` and `self_attn.v_proj`? they are three modules here",
    ),
    **dict.fromkeys(("query", "wq", "to_q", "q"), "`self_attn.q_proj`?"),
    **dict.fromkeys(("key", "wk", "to_k", "k"), "`self_attn.k_proj`?"),
    **dict.fromkeys(("value", "wv", "to_v", "v"), "`self_attn.v_proj`?"),
    **dict.fromkeys(("c_proj", "out_proj", "wo", "to_out.0", "dense", "o"), "`self_attn.o_proj`?"),
    **dict.fromkeys(("fc1", "w1", "dense_h_to_4h", "c_fc"), "`audio_mlp.gate_proj` and `audio_mlp.up_proj`?"),
    **dict.fromkeys(("fc2", "w2", "dense_4h_to_h"), "`audio_mlp.down_proj`?"),
    **dict.fromkeys(("all-linear", "all_linear", "all"), "the preset? write `targets: comprehensive`"),
}
"""Names from other code bases, and what they are called here."""


def lora_targets(ir: Ir, sink: Sink) -> Ir:
    """Derive `lora.modules` and `lora.module_count` from the targets."""
    lora = ir.spec.lora
    if lora is None:
        return ir
    linear = ir.shape.linear_modules()
    patterns = PRESETS[lora.targets] if isinstance(lora.targets, str) else lora.targets
    matches = {pattern: _linear_matching(pattern, ir.shape) for pattern in patterns}
    for index, pattern in enumerate(patterns):
        if not matches[pattern] and not sink.full:
            _report(ir, sink, index, pattern, matches, lora.heads)
    heads = [HEADS[head] for head in lora.heads]
    for head in set(lora.heads) & set(lora.full_heads):
        first, again = (
            ir.label(f"{at}.{getattr(lora, at[5:]).index(head)}") for at in ("lora.heads", "lora.full_heads")
        )
        message = f"the {head} head gets an adapter and is trained whole as well"
        sink.add(Diagnostic("HC504", message, again, (first,), help="keep it in one of the two lists"))
    if not patterns and not heads:
        message = "`lora.targets` is empty, so that no module gets an adapter"
        help_ = "leave it out, or write `targets: comprehensive`"
        sink.add(Diagnostic("HC503", message, ir.label("lora.targets"), help=help_))
    modules = {name for names in matches.values() for name in names} | set(heads)
    targets = tuple(dict.fromkeys([name for p in patterns for name in _as_suffixes(p, matches[p])] + heads))
    origin = f"preset `{lora.targets}`" if isinstance(lora.targets, str) else f"{len(patterns)} targets"
    ir = ir.derive(
        "lora.modules",
        targets,
        f"{origin}, {len(heads)} heads",
        by="lora_targets",
        inputs=("lora.targets", "lora.heads"),
    )
    return ir.derive(
        "lora.module_count",
        len(modules),
        f"of {len(linear)} linear modules",
        by="lora_targets",
        inputs=("lora.targets", "lora.heads"),
    )


@cache
def _linear_matching(pattern: str, shape: HiggsAudioV2Shape) -> list[str]:
    """The same for the linear modules of a model; the points of a sweep ask again and again."""
    return matching(pattern, shape.linear_modules())


def _as_suffixes(pattern: str, matched: list[str]) -> list[str]:
    """What PEFT's `target_modules` understands: the pattern itself, or what its `*` stands for."""
    if "*" not in pattern:
        return [pattern]
    depth = pattern.count(".") + 1
    return list(dict.fromkeys(".".join(name.split(".")[-depth:]) for name in matched))


def _report(
    ir: Ir, sink: Sink, index: int, pattern: str, matches: dict[str, list[str]], heads: Collection[str]
) -> None:
    linear = ir.shape.linear_modules()
    label = ir.label(f"lora.targets.{index}", f"0 of {len(linear)} linear modules")
    others = [
        name.removesuffix(".weight") for name in ir.shape.parameters() if name.removesuffix(".weight") not in linear
    ]
    if found := matching(pattern, others):
        sink.add(
            Diagnostic(
                "HC502",
                f"LoRA target `{pattern}` matches `{found[0]}`, which is not a linear module",
                label,
                help="LoRA goes on linear modules; leave this target out",
            )
        )
        return
    if (layer := re.search(r"layers\.([0-9]+)(?:\.|$)", pattern)) and int(layer[1][:9]) >= ir.shape.layers:
        way_out = f"there are layers 0 to {ir.shape.layers - 1}"
    elif inside := matching(f"{pattern}.*", linear):
        message = f"LoRA target `{pattern}` matches a block of {len(inside)} modules, not a linear module"
        sink.add(Diagnostic("HC502", message, label, help=f"write `{pattern}.*`"))
        return
    elif pattern in PRESETS:
        way_out = f"a preset stands alone: `targets: {pattern}`"
    else:
        way_out = _meant(pattern, linear, heads)
    matched = {name for names in matches.values() for name in names}
    found_some = [other for other, names in matches.items() if names]
    others_match = f"`{found_some[0]}` matches" if len(found_some) == 1 else f"{len(found_some)} other targets match"
    notes = (f"{others_match} {len(matched)} modules",)
    sink.add(
        Diagnostic(
            "HC501",
            f"LoRA target `{pattern}` matches no module of {ir.spec.model.family}",
            label,
            notes=notes if matched else (),
            help=way_out,
        )
    )


def _meant(pattern: str, linear: Iterable[str], heads: Collection[str]) -> str:
    """The way out of a target that matches nothing; `heads` are those that get an adapter already."""
    last_words = {".".join(name.split(".")[-2:]) for name in linear} | {name.split(".")[-1] for name in linear}
    if head := FOREIGN_HEADS.get(pattern):
        listed = ", ".join([*heads, head])
        return "take it out" + (": `heads` has it" if head in heads else f", and write `heads: [{listed}]` in `lora`")
    if pattern in FOREIGN:
        return f"did you mean {FOREIGN[pattern]}"
    if re.search(r"[\\^$()|+?]", pattern):
        return "targets are suffixes with `*`, no regular expressions: write `[q_proj, v_proj]`"
    return did_you_mean(pattern, sorted(last_words)) or "write suffixes such as `self_attn.q_proj`, `audio_mlp.*`"
