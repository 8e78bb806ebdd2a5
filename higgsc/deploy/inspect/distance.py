"""How far apart two adapters are, by group of modules.

An adapter changes a weight by `C = s B A`, B of shape [out, r], A of [r, in] and s its scale. Norms and inner products
of such changes are Frobenius's, computed from Gram matrices of rank by rank and never from C itself, which has as many
numbers as the weight:

    <C1, C2> = tr(C1^T C2) = s1 s2 sum((B1^T B2) * (A1 A2^T))        |C|^2 = <C, C>
    |C1 - C2|^2 = |C1|^2 + |C2|^2 - 2 <C1, C2>                       cos = <C1, C2> / (|C1| |C2|)

by tr(A1^T B1^T B2 A2) = tr(B1^T B2 A2 A1^T), the trace's cyclic property; the ranks may differ. In float64: a distance
below about 1e-8 of the norms drowns in rounding. The changes of different modules are orthogonal, so squares and
products of a group are sums. Two adapters with other factors but the same products are at distance zero, as they should
be: B and A mean nothing apart.

DoRA (https://arxiv.org/abs/2402.09353) also scales the rows of `W + C` to lengths m of their own; what is said above
is then of the low-rank part before that, and the lengths are compared by themselves, as `|m1 - m2| / |m1|`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from higgsc.contract.outcome import StepError
from higgsc.deploy.inspect.tensors import blocks
from higgsc.train.model.adapter import PREFIX, PROJECTOR, Adapter, LoraLayer, read_tensors, tensor_shapes

GROUPS: Final = {
    "attention": ".self_attn.",
    "text feed-forward": ".mlp.",
    "audio feed-forward": ".audio_mlp.",
}
"""What the path of a module in a group contains; the others are heads."""
HEADS: Final = "heads"


@dataclass(slots=True)
class Distance:
    """Sums over some modules that carry low-rank adapters."""

    modules: tuple[int, int] = (0, 0)
    """How many of each adapter's."""
    squares: tuple[float, float] = (0.0, 0.0)
    """|C1|^2 and |C2|^2."""
    product: float = 0.0
    """<C1, C2>; a module that only one adapter has contributes nothing."""
    lengths: tuple[float, float] | None = None
    """|m1 - m2|^2 and |m1|^2, where both are DoRA."""

    def add(self, other: Distance) -> None:
        """Take the sums of other modules in."""
        self.modules = (self.modules[0] + other.modules[0], self.modules[1] + other.modules[1])
        self.squares = (self.squares[0] + other.squares[0], self.squares[1] + other.squares[1])
        self.product += other.product
        if other.lengths is not None:
            mine = self.lengths or (0.0, 0.0)
            self.lengths = (mine[0] + other.lengths[0], mine[1] + other.lengths[1])

    @property
    def norms(self) -> tuple[float, float]:
        """|C1| and |C2|."""
        return math.sqrt(self.squares[0]), math.sqrt(self.squares[1])

    @property
    def difference(self) -> float:
        """|C1 - C2|."""
        return math.sqrt(max(0.0, sum(self.squares) - 2 * self.product))

    @property
    def cosine(self) -> float | None:
        """None where one of the two changes nothing."""
        norm = math.prod(self.norms)
        return max(-1.0, min(1.0, self.product / norm)) if norm else None

    @property
    def magnitudes(self) -> float | None:
        """|m1 - m2| / |m1| of DoRA."""
        return math.sqrt(self.lengths[0] / self.lengths[1]) if self.lengths and self.lengths[1] else None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "modules": list(self.modules),
            "norms": list(self.norms),
            "difference": self.difference,
            "cosine": self.cosine,
            "magnitudes": self.magnitudes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeDistance:
    """A weight that both adapters replace by one of their own."""

    norms: tuple[float, float]
    """Of the weights themselves, not of what changed."""
    difference: float


@dataclass(slots=True)
class AdapterDistance:
    """How far apart two adapters are."""

    modules: dict[str, Distance] = field(default_factory=dict)
    """By path, in the first adapter's order."""
    whole: dict[str, WholeDistance] = field(default_factory=dict)
    """Weights trained whole in both, by name; the projector too, where both listen with the same Whisper."""
    notes: list[str] = field(default_factory=list)
    """What the numbers do not say."""

    def groups(self) -> Mapping[str, Distance]:
        """The modules by group; only groups that either adapter has, and `all` where there are several."""
        found: dict[str, Distance] = {}
        for group in (*GROUPS, HEADS):
            of_group = [distance for path, distance in self.modules.items() if group_of(path) == group]
            if of_group:
                found[group] = _sum(of_group)
        return found if len(found) < 2 else found | {"all": _sum(list(self.modules.values()))}


def group_of(path: str) -> str:
    """The group of a module."""
    return next((group for group, part in GROUPS.items() if part in path), HEADS)


@torch.no_grad()
def adapter_distance(first: Adapter, second: Adapter) -> AdapterDistance:
    """Compare two adapters module by module.

    Raises:
        StepError: A tensor holds values that are not finite, or the adapters have weights of different shapes (65).
    """
    found = AdapterDistance()
    for name in dict.fromkeys((*first.layers, *second.layers)):
        layer, other = first.layers.get(name), second.layers.get(name)
        path = name.removesuffix(".weight")
        if layer is not None and other is not None:
            _same_shape(path, layer.shape, other.shape, second)
        found.modules[path] = _distance(first, layer, second, other)
    shapes = [tensor_shapes(adapter.weights_path) if adapter.full else {} for adapter in (first, second)]
    for name in (name for name in first.full if name in second.full):
        _same_shape(name, shapes[0][first.full[name]], shapes[1][second.full[name]], second)
        files = ((first.weights_path, first.full[name]), (second.weights_path, second.full[name]))
        found.whole[name] = _whole_distance(*files)
    if first.listener is not None and first.listener == second.listener:
        name = PROJECTOR.removeprefix(PREFIX)
        one, two = (tensor_shapes(adapter.projector_path)[PROJECTOR] for adapter in (first, second))
        _same_shape(name, one, two, second)
        found.whole[name] = _whole_distance((first.projector_path, PROJECTOR), (second.projector_path, PROJECTOR))
    found.notes += _notes(first, second)
    return found


def _same_shape(name: str, one: tuple[int, ...], two: tuple[int, ...], second: Adapter) -> None:
    if one != two:
        raise StepError(
            f"`{name}` is {list(two)} here and {list(one)} in the other adapter: their bases are of two sizes",
            path=second.weights_path,
        )


def _distance(first: Adapter, layer: LoraLayer | None, second: Adapter, other: LoraLayer | None) -> Distance:
    mine = None if layer is None else _factors(first, layer)
    theirs = None if other is None else _factors(second, other)
    lengths = None
    if layer is not None and other is not None and layer.key_magnitude and other.key_magnitude:
        (one,), (two,) = read_tensors(first, layer.key_magnitude), read_tensors(second, other.key_magnitude)
        lengths = (float((one.double() - two.double()).square().sum()), float(one.double().square().sum()))
    return Distance(
        modules=(int(mine is not None), int(theirs is not None)),
        squares=(_inner(mine, mine), _inner(theirs, theirs)),
        product=_inner(mine, theirs),
        lengths=lengths,
    )


_Factors = tuple[torch.Tensor, torch.Tensor]


def _factors(adapter: Adapter, layer: LoraLayer) -> _Factors:
    """`s B` [out, r] and `A` [r, in] in float64."""
    a, b = read_tensors(adapter, layer.key_a, layer.key_b)
    return b.double().mul_(layer.scale), a.double()


def _inner(one: _Factors | None, two: _Factors | None) -> float:
    """<B1 A1, B2 A2> from products of [r1, r2]."""
    if one is None or two is None:
        return 0.0
    return float(((one[0].T @ two[0]) * (one[1] @ two[1].T)).sum())


def _whole_distance(first: tuple[Path, str], second: tuple[Path, str]) -> WholeDistance:
    """Of two weights, each a file and a name in it."""
    one = two = apart = 0.0
    with safe_open(first[0], "pt") as mine, safe_open(second[0], "pt") as theirs:
        pairs = zip(blocks(mine, first[1]), blocks(theirs, second[1]), strict=True)
        for left, right in ((left.double(), right.double()) for left, right in pairs):
            one += float(left.square().sum())
            two += float(right.square().sum())
            apart += float((left - right).square().sum())
    return WholeDistance(norms=(math.sqrt(one), math.sqrt(two)), difference=math.sqrt(apart))


def _sum(distances: list[Distance]) -> Distance:
    total = Distance()
    for distance in distances:
        total.add(distance)
    return total


def _notes(first: Adapter, second: Adapter) -> list[str]:
    notes = []
    if (first.base, first.revision) != (second.base, second.revision):
        notes.append(
            f"they say that they were trained on different bases: `{first.base}` at revision {first.revision}, "
            f"`{second.base}` at revision {second.revision}"
        )
    dora = [any(layer.key_magnitude for layer in adapter.layers.values()) for adapter in (first, second)]
    if any(dora):
        notes.append("DoRA: the distance is of the low-rank part, before the rows are brought to their lengths")
    if dora[0] != dora[1]:
        notes.append("only one of them is DoRA: its lengths of rows have nothing to be compared with")
    if first.listener != second.listener:
        who = [f"the first with {first.listener}", f"the second with {second.listener}"]
        listen = [words for words, adapter in zip(who, (first, second), strict=True) if adapter.listener is not None]
        notes.append(f"not compared, what they make of what a Whisper hears: {', '.join(listen)}")
    for one, two, which in ((first, second, "first"), (second, first, "second")):
        if alone := [name for name in one.full if name not in two.full]:
            notes.append(f"trained whole in the {which} alone, and not compared: {', '.join(alone)}")
    return notes
