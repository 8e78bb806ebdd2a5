"""The memory of a GPU by what it is for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the moment when most are in use, by what they are for."""

    base: int
    """Frozen weights; 0 where the whole model is trained."""
    adapter: int
    """Trainable weights."""
    optimizer: int
    """AdamW's two moments."""
    gradients: int
    """Gradients that earlier micro-batches of the step left behind."""
    gathered: int
    """Weights that FSDP2 has put together for the moment."""
    activations: int
    """What the decoder's forward pass keeps for the backward pass."""
    working: int
    """Logits, and what comes and goes."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
