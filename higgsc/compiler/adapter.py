"""The adapter of a spec as PEFT understands it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from higgsc.catalog.adapter import AdapterShape
from higgsc.compiler.ir import Ir

HEADS = {"audio": "audio_lm_head", "text": "text_lm_head"}
NumberT = TypeVar("NumberT", int, float)


def adapter_of(ir: Ir) -> AdapterShape | None:
    """What the spec's adapter consists of, once `lora_targets` has derived its modules; None if it has none."""
    lora = ir.spec.lora
    if lora is None:
        return None
    targets = ir.derived["lora.modules"].value
    assert isinstance(targets, tuple)
    modules = AdapterShape(targets=targets, rank=lora.rank).modules(ir.shape)
    return AdapterShape(
        targets=targets,
        rank=lora.rank,
        rank_pattern=tuple(as_peft(lora.rank_pattern, modules).items()),
        dropout=lora.dropout,
        dora=lora.dora,
        full=tuple(HEADS[head] for head in HEADS if head in lora.full_heads),  # in the model's order
    )


def as_peft(patterns: Mapping[str, NumberT], modules: Iterable[str]) -> dict[str, NumberT]:
    """Patterns as regular expressions, which is how PEFT reads `rank_pattern` and `alpha_pattern`.

    In a spec the first pattern that matches counts, and PEFT reads them so too, but it sorts them whenever it saves an
    adapter. So they are made to exclude one another: one that an earlier one takes modules from lists those it keeps.
    """
    modules = list(modules)
    found: dict[str, NumberT] = {}
    decided: set[str] = set()
    for pattern, value in patterns.items():
        matched = matching(pattern, modules)
        kept = [name for name in matched if name not in decided]
        plain = "[^.]*".join(re.escape(part) for part in re.split(r"\*+", pattern))
        found[plain if kept == matched else "|".join(map(re.escape, kept))] = value
        decided.update(kept)
    return found


def matching(pattern: str, modules: Iterable[str]) -> list[str]:
    """The module paths that end in `pattern` at a dot; `*` stands for any characters but a dot."""
    if "*" not in pattern:
        return [name for name in modules if name == pattern or name.endswith(f".{pattern}")]
    # Several stars are one: apart they would be tried in every combination.
    parts = re.split(r"\*+", pattern)
    expression = re.compile(r"(.*\.)?" + "[^.]*".join(re.escape(part) for part in parts))
    return [name for name in modules if expression.fullmatch(name)]
