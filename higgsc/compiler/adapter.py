"""The adapter of a spec as PEFT understands it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from higgsc.catalog.adapter import AdapterShape
from higgsc.compiler.ir import Ir

HEADS = {"audio": "audio_lm_head", "text": "text_lm_head"}
NumberT = TypeVar("NumberT", int, float)


def adapter_of(ir: Ir) -> AdapterShape:
    """What the spec's adapter consists of, once `lora_targets` has derived its modules."""
    lora, modules = ir.spec.lora, ir.derived["lora.modules"].value
    assert isinstance(modules, tuple)
    return AdapterShape(
        targets=modules,
        rank=lora.rank,
        rank_pattern=tuple(as_peft(lora.rank_pattern).items()),
        dropout=lora.dropout,
        dora=lora.dora,
        full=full_heads(ir),
    )


def full_heads(ir: Ir) -> tuple[str, ...]:
    """Paths of the heads that are trained whole, in the model's order."""
    return tuple(HEADS[head] for head in HEADS if head in ir.spec.lora.full_heads)


def as_peft(patterns: Mapping[str, NumberT]) -> dict[str, NumberT]:
    """Patterns as regular expressions, which is how PEFT reads `rank_pattern`, in their order."""
    return {
        "[^.]*".join(re.escape(part) for part in re.split(r"\*+", pattern)): value
        for pattern, value in patterns.items()
    }
