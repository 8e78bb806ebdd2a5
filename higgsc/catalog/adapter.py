"""Which weights of a model LoRA trains, and how many numbers that makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterShape:
    """Where adapters are and how large, as PEFT understands it."""

    targets: tuple[str, ...]
    """Suffixes of the paths of the modules that carry an adapter."""
    rank: int
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Ranks of their own: regular expressions for dotted suffixes of module paths; the first that matches counts."""
    dropout: float = 0.0
    dora: bool = False
    full: tuple[str, ...] = ()
    """Paths of modules whose weight is trained whole instead."""

    def modules(self, shape: HiggsAudioV2Shape) -> dict[str, tuple[int, int]]:
        """Modules with an adapter: path to `(out, in)`, in the model's order."""
        ends = tuple(f".{target}" for target in self.targets)
        return {name: sizes for name, sizes in shape.linear_modules().items() if f".{name}".endswith(ends)}

    def rank_of(self, module: str) -> int:
        """The rank of a module's adapter."""
        return next((rank for pattern, rank in self.rank_pattern if matches(pattern, module)), self.rank)

    def parameters(self, shape: HiggsAudioV2Shape) -> dict[str, int]:
        """Trained numbers by module: `r x (in + out)`, with DoRA `out` more, and `in x out` where trained whole."""
        found = {
            name: self.rank_of(name) * (out + inputs) + (out if self.dora else 0)
            for name, (out, inputs) in self.modules(shape).items()
        }
        linear = shape.linear_modules()
        return found | {name: prod(linear[name]) for name in self.full}


def matches(pattern: str, module: str) -> bool:
    """PEFT's rule for `rank_pattern` and `alpha_pattern` (`get_pattern_key`): a dotted suffix of the path."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def value_of(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of a module in `rank_pattern` or `alpha_pattern`: that of the first pattern that matches."""
    return next((value for pattern, value in patterns.items() if matches(pattern, module)), default)
