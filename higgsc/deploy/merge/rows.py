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

import torch
from torch import Tensor

from higgsc.deploy.rewrite import Rows
from higgsc.deploy.weights import TensorInfo
from higgsc.train.model.adapter import Adapter, LoraLayer, read_tensors

Exact = Callable[[Tensor, int, int], Tensor]
"""New rows, float32 `[end - first, ...]`, from those of the base in float32, `first` and `end`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How well one merged tensor is kept by the dtype it is stored in; of a LoRA, judged by one row in eight."""

    change: float
    """Frobenius norm of what the adapter changes, relative to that of the base's tensor."""
    rounding: float
    """Frobenius norm of what storing rounds away, relative to that of what the adapter changes.

    In bfloat16 it depends on `change` alone: about 2 % at 0.1, 17 % at 0.01, 50 % at 0.003.
    """


SAMPLED = 8
"""Of a LoRA, which changes every row, one of so many is looked at: with all of them, a merge takes a third longer."""


class Tally:
    """What rounding costs in one tensor, added up while its rows are written, by several threads and in any order.

    Args:
        every: One of so many rows is looked at, in blocks that have many.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = every
        self._squares: dict[int, tuple[float, float, float]] = {}

    def add(self, first: int, original: Tensor, exact: Tensor, stored: Tensor) -> None:
        """Take the rows from `first` on into account."""
        some = slice(None, None, self._every if len(original) >= 16 * self._every else 1)
        rows, original, exact, stored = len(original), original[some], exact[some], stored[some]
        stands_for = rows / len(original)
        rounded = _square(stored - exact) if stored.dtype != exact.dtype else 0.0
        sums = _square(original), _square(exact - original), rounded
        self._squares[first] = sums[0] * stands_for, sums[1] * stands_for, sums[2] * stands_for

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
        original = found.float()  # once: operations on two dtypes convert behind the scenes, every time
        changed = exact(original, first, end)
        stored = changed.to(dtype, copy=True)
        tally.add(first, original, changed, stored)
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
        return lambda rows, first, end: whole[first:end].clone()
    layer = adapter.layers.get(info.name)
    return None if layer is None else _lora(adapter, layer)


def _lora(adapter: Adapter, layer: LoraLayer) -> Exact:
    a, b = read_tensors(adapter, layer.key_a, layer.key_b)
    scale = layer.scale
    if math.frexp(scale)[0] == 0.5:  # a power of two rounds nothing, wherever it is multiplied
        b, scale = b * scale, 1.0

    def plain(rows: Tensor, first: int, end: int) -> Tensor:
        product = b[first:end] @ a
        return (product if scale == 1 else product.mul_(scale)).add_(rows)

    if layer.key_magnitude is None:
        return plain
    (magnitude,) = read_tensors(adapter, layer.key_magnitude)

    def dora(rows: Tensor, first: int, end: int) -> Tensor:
        merged = plain(rows, first, end)
        return merged.mul_((magnitude[first:end] / torch.linalg.norm(merged, dim=1)).view(-1, 1))

    return dora
