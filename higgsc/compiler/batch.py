"""How batches are counted: in samples, or in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from higgsc.catalog.setup import Sample
from higgsc.compiler.ir import Ir

Unit = Literal["samples", "tokens"]

DEFAULT_SAMPLES = 4
DEFAULT_TOKENS = 16_384
"""Tokens of a row if the spec does not say: longer ones make no GPU faster."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What an optimizer step and a micro-batch hold."""

    unit: Unit
    whole: int
    """Of an optimizer step, over all ranks."""
    micro: int
    """Of a rank at a time."""

    def longest(self, max_seconds: float) -> Sample:
        """What a micro-batch is made of when it needs most memory: of samples, the longest; of tokens, one row."""
        if self.unit == "tokens":
            return Sample.of_tokens(self.micro)
        return Sample.of_seconds(max_seconds, max_seconds)

    @property
    def count(self) -> int:
        """How many of those."""
        return self.micro if self.unit == "samples" else 1


def unit_of(ir: Ir) -> Unit | None:
    """What the global batch is counted in; None if the spec says neither, or both."""
    given = ir.spec.training.global_batch
    if (given.samples is None) == (given.tokens is None):
        return None
    return "tokens" if given.samples is None else "samples"


def ranks_of(ir: Ir) -> int:
    """Data-parallel ranks, of a state whose mesh is sound."""
    return ir.integer("parallelism.replicate") * ir.spec.parallelism.shard


def batch_of(ir: Ir) -> Batch:
    """The batch of a state whose mesh and units are sound."""
    unit = unit_of(ir)
    assert unit is not None, "passes/batch.py has reported it"
    whole = getattr(ir.spec.training.global_batch, unit)
    micro = getattr(ir.spec.training.micro_batch, unit)
    if micro is None:
        micro = DEFAULT_SAMPLES if unit == "samples" else most_that_divides(whole, ranks_of(ir), DEFAULT_TOKENS)
    return Batch(unit, whole, micro)


def most_that_divides(whole: int, ranks: int, most: int) -> int:
    """The largest micro-batch of at most `most` tokens that divides the global batch; `most` if none is near it."""
    first = max(1, -(-whole // (ranks * most)))
    fitting = (whole // (ranks * number) for number in range(first, 4 * first) if whole % (ranks * number) == 0)
    return next(fitting, most)
