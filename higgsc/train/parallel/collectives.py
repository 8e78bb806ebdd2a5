"""Communication that gradients pass through: each function here has its adjoint as backward.

Between the shares of the data there is one, `gather_rows`. The others are those of a tensor group, and of activations
`[1, L, h]`, a packed row. A tensor is *whole* if every process holds the same, *partial* if the processes hold summands
of it, and *split* if each holds a stretch of the sequence.

    forward                 backward                from → to
    enter: nothing          all-reduce              whole → whole, whose gradient is partial
    leave: all-reduce       nothing                 partial → whole
    enter: all-gather       reduce-scatter          split → whole, whose gradient is partial
    leave: reduce-scatter   all-gather              partial → split
    divide: take a stretch  all-gather              whole → split
    join: all-gather        take a stretch          split → whole

Rows: Shoeybi et al., "Megatron-LM", 2019 (the first two); Korthikanti et al., "Reducing Activation Recomputation in
Large Transformer Models", 2022 (the others).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

Exchange = Callable[[Tensor], Tensor]

_SEQUENCE = 1
_OPS = torch.ops._c10d_functional
"""What `torch.distributed._functional_collectives` calls; its own names for it changed in torch 2.13."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorGroup:
    """The processes that share the matrices of every layer."""

    group: dist.ProcessGroup
    rank: int
    size: int
    sequence: bool
    """Whether the activations between the blocks are split along the sequence."""

    def enter(self, hidden: Tensor, length: int) -> Tensor:
        """What a block's column-parallel matrices take: all `length` positions, on every process."""
        if not self.sequence:
            return _exchange(hidden, _same, self.summed)
        # The row of one is put back last: with the strides that it has before, torch multiplies a batch (`bmm`) instead
        # of matrices, and selective activation checkpointing would take the products for cheap ones.
        return _exchange(hidden, self.gathered, self.scattered)[0, :length][None]

    def leave(self, partial: Tensor) -> Tensor:
        """The sum of what the row-parallel matrices gave; with sequence parallelism, this process's stretch of it."""
        if not self.sequence:
            return _exchange(partial, self.summed, _same)
        return _exchange(self._padded(partial), self.scattered, self.gathered)

    def divide(self, hidden: Tensor) -> Tensor:
        """This process's stretch of what all hold; the last stretches are filled up with zeros."""
        return _exchange(self._padded(hidden), self._own, self.gathered) if self.sequence else hidden

    def join(self, hidden: Tensor, length: int) -> Tensor:
        """The stretches of all processes, which all go on to compute the same with them."""
        return _exchange(hidden, self.gathered, self.stretch)[:, :length] if self.sequence else hidden

    def mine(self, mask: Tensor) -> Tensor:
        """This process's stretch of a mask `[1, L]`, filled up with False."""
        return self.stretch(self._padded(mask)) if self.sequence else mask

    def stretch(self, tensor: Tensor) -> Tensor:
        """This process's part along the sequence, of a length that divides."""
        length = tensor.shape[_SEQUENCE] // self.size
        return tensor.narrow(_SEQUENCE, self.rank * length, length)

    def summed(self, tensor: Tensor) -> Tensor:
        """All-reduce, into another tensor."""
        return _done(_OPS.all_reduce(tensor.contiguous(), "sum", self.group.group_name))

    def gathered(self, tensor: Tensor, dim: int = _SEQUENCE) -> Tensor:
        """All-gather along a dimension."""
        first = tensor.movedim(dim, 0).contiguous()
        return _done(_OPS.all_gather_into_tensor(first, self.size, self.group.group_name)).movedim(0, dim)

    def scattered(self, tensor: Tensor) -> Tensor:
        """Reduce-scatter along the sequence."""
        first = tensor.movedim(_SEQUENCE, 0).contiguous()
        result = _done(_OPS.reduce_scatter_tensor(first, "sum", self.size, self.group.group_name))
        return result.movedim(0, _SEQUENCE)

    def _own(self, tensor: Tensor) -> Tensor:
        return self.stretch(tensor).clone()

    def _padded(self, tensor: Tensor) -> Tensor:
        missing = -tensor.shape[_SEQUENCE] % self.size
        if not missing:
            return tensor
        return pad(tensor, (0, 0) * (tensor.ndim - 1 - _SEQUENCE) + (0, missing))


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: Exchange, back: Exchange) -> Tensor:
        ctx.back = back
        return there(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


def _exchange(tensor: Tensor, there: Exchange, back: Exchange) -> Tensor:
    """Do `there` with a tensor, and `back` with its gradient."""
    result: Tensor = _Exchange.apply(tensor, there, back)  # type: ignore[no-untyped-call]
    return result


def _same(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)


def _done(tensor: Tensor) -> Tensor:
    result: Tensor = _OPS.wait_tensor(tensor)
    return result


def gather_rows(values: Tensor, rank: int, size: int, group: dist.ProcessGroup | None) -> Tensor:
    """All-gather of rows `[n, ...]`, as many on each of `size` processes, to `[N, ...]`.

    What comes back for a row is the sum of what all processes have for it.
    """
    rows: Tensor = _GatherRows.apply(values, rank, size, group)  # type: ignore[no-untyped-call]
    return rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rank: int, size: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        ctx.own = slice(rank * len(values), (rank + 1) * len(values))
        parts = [torch.empty_like(values) for _ in range(size)]
        dist.all_gather(parts, values.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed, group=ctx.group)
        return summed[ctx.own], None, None, None
