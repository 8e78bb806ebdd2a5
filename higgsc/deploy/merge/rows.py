"""What an adapter makes of a weight, some rows at a time, and how much of it the stored dtype keeps.

    LoRA    W + s B A                              (Hu et al., 2021; https://arxiv.org/abs/2106.09685)
    DoRA    m (W + s B A) / |W + s B A| by rows    (Liu et al., 2024; https://arxiv.org/abs/2402.09353)
    whole   the weight that was trained in W's place

Each row depends on the same row of W, B and m only, and on all of A. The operations and their order are those of
PEFT's own merge, in float32, so that the result is the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from higgsc.deploy.rewrite import Rows
from higgsc.deploy.weights import TensorInfo
from higgsc.train.model.adapter import Adapter, LoraLayer, read_tensors

PART_VALUES = 2**17
"""Values that go through all of the arithmetic at a time: 512 KB in float32, of which a core's cache holds some."""

Exact = Callable[[Tensor, int, int], tuple[Tensor, float]]
"""New rows, float32 `[end - first, ...]`, from those of the base in float32, `first` and `end`; and the sum of the
squares of what they differ by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How well one merged tensor is kept by the dtype it is stored in."""

    change: float
    """Frobenius norm of what the adapter changes, relative to that of the base's tensor."""
    rounding: float
    """Frobenius norm of what storing rounds away, relative to that of what the adapter changes.

    In bfloat16 it depends on `change` alone: about 2 % at 0.1, 17 % at 0.01, 50 % at 0.003.
    """


class Tally:
    """What rounding costs in one tensor, added up while its rows are written, by several threads and in any order."""

    def __init__(self) -> None:
        self._squares: dict[int, tuple[float, float, float]] = {}

    def add(self, first: int, original: float, changed: float, rounded: float) -> None:
        """Take the rows from `first` on into account: sums of the squares of the base's values, of what the adapter
        changes, and of what storing rounds away."""
        self._squares[first] = original, changed, rounded

    @property
    def fidelity(self) -> Fidelity:
        """Of the rows so far."""
        blocks = [square for _, square in sorted(self._squares.items())]
        original, changed, rounded = (sum(column) for column in zip(*blocks, strict=True))
        return Fidelity(
            change=math.sqrt(changed) / max(math.sqrt(original), 1e-30),
            rounding=math.sqrt(rounded / changed) if changed else 0.0,
        )


def stored_rows(exact: Exact, dtype: torch.dtype, tally: Tally) -> Rows:
    """Makes rows to store from those of the base.

    Args:
        exact: What the adapter makes of them.
        dtype: What is stored.
        tally: Keeps count.
    """

    def rows(found: Tensor, first: int, end: int) -> Tensor:
        stored = torch.empty_like(found, dtype=dtype)
        # A product of a single row is another routine of the library, which adds in another order.
        parts = max(1, min(found.numel() // PART_VALUES, (end - first) // 2))
        bounds = [(end - first) * part // parts for part in range(parts + 1)]
        for begin, stop in pairwise(bounds):
            original = found[begin:stop].float()  # once: operations on two dtypes convert behind the scenes, every time
            new, changed = exact(original, first + begin, first + stop)
            kept = stored[begin:stop].copy_(new)
            rounded = 0.0 if kept.dtype == new.dtype else _square(new.sub_(kept.float()))
            tally.add(first + begin, _square(original), changed, rounded)
        return stored

    return rows


def _square(tensor: Tensor) -> float:
    flat = tensor.reshape(-1)
    return float(torch.dot(flat, flat))


def exact_rows(adapter: Adapter, info: TensorInfo) -> Exact | None:
    """What an adapter makes of a tensor of the base; None if it leaves it alone.

    Raises:
        StepError: A tensor of the adapter holds a value that is not finite (65).
    """
    if info.name in adapter.full:
        (whole,) = read_tensors(adapter, adapter.full[info.name])

        def trained(rows: Tensor, first: int, end: int) -> tuple[Tensor, float]:
            new = whole[first:end]
            return new.clone(), _square(new - rows)

        return trained
    layer = adapter.layers.get(info.name)
    return None if layer is None else _lora(adapter, layer)


def _lora(adapter: Adapter, layer: LoraLayer) -> Exact:
    a, b = read_tensors(adapter, layer.key_a, layer.key_b)
    scale = layer.scale
    if math.frexp(scale)[0] == 0.5:  # a power of two rounds nothing, wherever it is multiplied
        b, scale = b * scale, 1.0

    def plain(rows: Tensor, first: int, end: int) -> tuple[Tensor, float]:
        product = b[first:end] @ a
        if scale != 1:
            product.mul_(scale)
        changed = _square(product)
        return product.add_(rows), changed

    if layer.key_magnitude is None:
        return plain
    (magnitude,) = read_tensors(adapter, layer.key_magnitude)

    def dora(rows: Tensor, first: int, end: int) -> tuple[Tensor, float]:
        merged, _ = plain(rows, first, end)
        merged.mul_((magnitude[first:end] / torch.linalg.norm(merged, dim=1)).view(-1, 1))
        return merged, _square(merged - rows)

    return dora
