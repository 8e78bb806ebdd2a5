"""What the change from one spec to another means for a run: an edit list over resolved values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from higgsc.compiler.composition.provenance import Origin, dotted, leaves, origin_of, values_of
from higgsc.compiler.ir import Ir
from higgsc.compiler.reading.source import NodePath

Effect = Literal["cosmetic", "resume-safe", "changes the data order", "needs a new optimizer", "breaks resume"]
EFFECTS: tuple[Effect, ...] = (
    "cosmetic",
    "resume-safe",
    "changes the data order",
    "needs a new optimizer",
    "breaks resume",
)
"""From harmless to grave."""

_EFFECTS: dict[str, tuple[Effect, str]] = {
    "apiVersion": ("cosmetic", ""),
    "name": ("cosmetic", "another run folder"),
    "output": ("cosmetic", "another run folder"),
    "site": ("cosmetic", "where and how long the jobs run"),
    "secrets": ("cosmetic", ""),
    "merge": ("cosmetic", "repeats merge and evaluate"),
    "evaluate": ("cosmetic", "repeats evaluate"),
    "tracking": ("cosmetic", "where the figures are shown"),
    "checkpoint": ("resume-safe", ""),
    "hardware": ("resume-safe", "the same samples on other ranks"),
    "parallelism": ("resume-safe", "the same samples on other ranks"),
    "loss": ("resume-safe", "another objective from the next step on"),
    "training": ("resume-safe", ""),
    "training.global_batch": ("changes the data order", "other samples in each step"),
    "training.curriculum": ("changes the data order", "other samples in each step"),
    "training.weight_decay": ("needs a new optimizer", "AdamW keeps its own"),
    "precision": ("needs a new optimizer", "other numbers from the next step on"),
    "seed": ("changes the data order", ""),
    "data": ("changes the data order", "repeats prepare"),
    "data.prepare": ("cosmetic", "the store is the same"),
    "lora": ("breaks resume", "adapter shapes change"),
    "lora.alpha": ("breaks resume", "the saved adapter would mean something else"),
    "lora.alpha_pattern": ("breaks resume", "the saved adapter would mean something else"),
    "lora.scaling": ("breaks resume", "the saved adapter would mean something else"),
    "lora.dropout": ("resume-safe", ""),
    "lora.start": ("breaks resume", "the training began somewhere else"),
    "model": ("breaks resume", "the adapter belongs to its base"),
    "model.quantize": ("breaks resume", "other numbers from the next step on"),
}
"""By path; the longest prefix counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One value that is not the same in both."""

    path: str
    before: Any
    """None when the value is new."""
    after: Any
    """None when the value is gone."""
    kind: Literal["insert", "remove", "update"]
    origin: Origin
    """Of the value after the change; before it, for a value that is gone."""
    effect: Effect
    reason: str
    derived: bool
    """Whether a pass computed it, so that it only follows from other edits."""


def diff(before: Ir, after: Ir) -> tuple[Edit, ...]:
    """The edits that turn one resolved spec into the other: those of people first, what follows from them after."""
    old, new = leaves(values_of(before)), leaves(values_of(after))
    edits = []
    for path in [*old, *(path for path in new if path not in old)]:
        if path in old and path in new and old[path] == new[path]:
            continue
        kind: Literal["insert", "remove", "update"] = (
            "update" if path in old and path in new else "remove" if path in old else "insert"
        )
        origin = origin_of(after, path) if path in new else origin_of(before, path)
        effect, reason = effect_of(path)
        edits.append(
            Edit(
                path=dotted(path),
                before=old.get(path),
                after=new.get(path),
                kind=kind,
                origin=origin,
                effect=effect,
                reason=reason,
                derived=origin.derived is not None,
            )
        )
    return tuple(sorted(edits, key=lambda edit: edit.derived))


def effect_of(path: NodePath) -> tuple[Effect, str]:
    """What a change of this value means for a run that has begun, and why."""
    words = [str(part) for part in path]
    for end in range(len(words), 0, -1):
        if (found := _EFFECTS.get(".".join(words[:end]))) is not None:
            return found
    raise KeyError(f"no effect is given for {dotted(path)}")


def worst(edits: tuple[Edit, ...]) -> Effect:
    """The gravest effect of an edit list."""
    return max((edit.effect for edit in edits if not edit.derived), key=EFFECTS.index, default="cosmetic")
