"""Frozen matrices in eight or four bits, and the products of a training with them.

A matrix `W [out, in]` is rounded once, when it is loaded:

    fp8     W = s_i q_ij    q in float8_e4m3fn, s_i = max_j |W_ij| / 448
    int8    W = s_i q_ij    q in -127 .. 127,   s_i = max_j |W_ij| / 127
    nf4     W = s_ib c[q]   q in 0 .. 15, two to a byte; s the largest |W| of each 64 numbers of a row, c the sixteen
                            quantiles of a normal distribution (QLoRA; Dettmers et al., 2023)

With int8 and nf4 a matrix is made whole again for each product, in the number format of its input, and forgotten:
forward, and again backward. With fp8 the rounded numbers themselves are multiplied, and so the other factor is rounded
too, each of its rows with a scale of its own. With Q(x)_n = t_n q_n, t_n = max |x_n| / 448,

    forward         y = Q(x) W^T              y_ni  = t_n s_i sum_j q_nj q_ij
    backward      g_x = Q(g s) q              g_xnj = t_n sum_i q_ni q_ij,  where Q rounds g_ni s_i

in which sums are float32. The scales of W stand inside the sum of the backward pass, so they are multiplied into the
gradient before it is rounded, and the same eight bits serve both directions. A token is rounded by itself: what comes
out of a row does not depend on what else is in the row, nor on how the rows are spread over processes.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

Scheme = Literal["fp8", "int8", "nf4"]
Parts = tuple[Tensor, ...]
"""What a matrix consists of: itself; or its values and its scales, and with nf4 the numbers that a byte stands for."""

FP8 = torch.float8_e4m3fn
BLOCK = 64
"""Numbers of a row that have a scale together, with nf4."""
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""From the authors' code (bitsandbytes, `create_normal_map`)."""


def quantize(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Round a matrix `[out, in]`.

    Returns:
        Values, uint8 `[out, in]` (fp8's bits) or int8 `[out, in]` or uint8 `[out, in / 2]` (nf4, the left number in the
        upper half); and scales, float32 `[out, 1]` or `[out, in / 64]`.
    """
    wide = weight.float()
    if scheme == "nf4":
        blocks = wide.unflatten(1, (-1, BLOCK))
        scales = _scales(blocks, 1.0)
        numbers = torch.tensor(_NF4, device=weight.device)
        between = (numbers[1:] + numbers[:-1]) / 2
        nearest = torch.bucketize(blocks / scales, between, out_int32=True).flatten(1).to(torch.uint8)
        return nearest[:, ::2] << 4 | nearest[:, 1::2], scales[..., 0]
    if scheme == "int8":
        scales = _scales(wide, 127.0)
        return (wide / scales).round().to(torch.int8), scales
    values, scales = rounded(wide)
    return values.view(torch.uint8), scales


def _scales(rows: Tensor, largest: float) -> Tensor:
    """What makes the largest number of each row that number; for a row of zeros, or nearly, what makes 2^-100 it.

    Numbers stand here, and not in constants of the module, which dynamo (torch 2.13) takes for variables.
    """
    found = torch.linalg.vector_norm(rows, ord=float("inf"), dim=-1, keepdim=True)
    scales: Tensor = found.float().clamp(min=2.0**-100) / largest
    return scales


def pairs(device: torch.device | None = None) -> Tensor:
    """The two numbers that each byte of nf4 stands for, float32 `[256, 2]`."""
    numbers = torch.tensor(_NF4, device=device)
    return torch.stack((numbers.repeat_interleave(16), numbers.repeat(16)), 1)


def dense(parts: Parts, scheme: Scheme | None, dtype: torch.dtype) -> Tensor:
    """The matrix `[out, in]` that is meant, rounded to a number format; itself where it is not quantised."""
    if scheme is None:
        return parts[0]
    if scheme == "nf4":
        values, scales, numbers = parts
        blocks = numbers.index_select(0, values.flatten().int()).view(*scales.shape, BLOCK)
        return blocks.mul_(scales[..., None]).flatten(1).to(dtype)
    values, scales = parts
    return ((values.view(FP8).float() if scheme == "fp8" else values) * scales).to(dtype)


def products(x: Tensor, matrices: Sequence[Parts], scheme: Scheme | None) -> list[Tensor]:
    """`x W_i^T` of one input `[n, in]`, each a tensor of its own."""
    if scheme != "fp8":
        return [x @ dense(parts, scheme, x.dtype).T for parts in matrices]
    rows, scale = rounded(x)
    return [multiply(rows, values.view(FP8).T, scale, scales.T, x.dtype) for values, scales in matrices]


def input_gradient(gradients: Sequence[Tensor], matrices: Sequence[Parts], scheme: Scheme | None) -> Tensor:
    """The sum of all `g_i W_i`, a tensor of its own, `[n, in]`, from `g_i` `[n, out_i]`."""
    total = None
    for gradient, parts in zip(gradients, matrices, strict=True):
        if scheme != "fp8":
            matrix = dense(parts, scheme, gradient.dtype)
            total = gradient @ matrix if total is None else total.addmm_(gradient, matrix)
            continue
        values, scales = parts
        rows, scale = rounded(gradient * scales.T)
        # The kernel wants its second factor by columns, so that this one is turned over each time: a second copy that
        # stays would double the base.
        columns = values.T.contiguous().view(FP8).T
        part = multiply(rows, columns, scale, scales.new_ones(1, values.shape[1]), gradient.dtype)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[n, k]` in float8, and the scale of each row, float32 `[n, 1]`."""
    scale = _scales(x, 448.0)
    return (x / scale).to(FP8), scale


def multiply(rows: Tensor, columns: Tensor, row_scale: Tensor, column_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`(rows @ columns) * row_scale * column_scale` of float8 `[n, k]` and `[k, m]`, summed in float32.

    By `torch._scaled_mm`, which a CPU has too; GPUs want the results in bfloat16.

    Args:
        rows: Contiguous.
        columns: Contiguous by columns.
        row_scale: `[n, 1]`.
        column_scale: `[1, m]`.
        dtype: Of the result `[n, m]`.
    """
    if len(rows) == 0:  # a row without text, or without audio: not every kernel takes nothing
        return rows.new_empty((0, columns.shape[1]), dtype=dtype)
    return torch._scaled_mm(rows, columns, row_scale, column_scale.contiguous(), out_dtype=dtype)


class _Product(Function):
    """`x W^T` with a frozen W."""

    # Not `*parts`: by the number of parameters, dynamo (torch 2.13) tells whether there is a context.
    @staticmethod
    def forward(ctx, x, scheme, values, scales, numbers):
        ctx.scheme = scheme
        ctx.save_for_backward(values, scales, numbers)
        return products(x, [_parts(values, scales, numbers)], scheme)[0]

    @staticmethod
    def backward(ctx, gradient):
        return input_gradient([gradient], [_parts(*ctx.saved_tensors)], ctx.scheme), None, None, None, None


def _parts(values: Tensor, scales: Tensor, numbers: Tensor | None) -> Parts:
    return (values, scales) if numbers is None else (values, scales, numbers)


class QuantizedLinear(nn.Module):
    """A frozen linear layer without bias, quantised; in the place of an `nn.Linear`, and of its base inside PEFT's.

    Its numbers are parameters, so that FSDP2 divides them; they have no gradient.

    Args:
        weight: `[out, in]`.
        scheme: How it is rounded.
    """

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.scheme: Scheme = scheme
        self.dtype = weight.dtype
        values, scales = quantize(weight.detach(), scheme)
        self.values = nn.Parameter(values, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.numbers: Tensor | None
        self.register_buffer("numbers", pairs(weight.device) if scheme == "nf4" else None, persistent=False)

    @property
    def parts(self) -> Parts:
        """What it consists of, for `products` and `input_gradient`."""
        return _parts(self.values, self.scales, self.numbers)

    def forward(self, x: Tensor) -> Tensor:
        """`x W^T`, `[..., in]` to `[..., out]`, in the number format that the weight had."""
        rows = x.to(self.dtype).flatten(0, -2)
        found: Tensor = _Product.apply(rows, self.scheme, self.values, self.scales, self.numbers)
        return found.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme}"
