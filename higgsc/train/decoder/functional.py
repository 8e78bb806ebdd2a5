"""Arithmetic between the matrix products, each with a backward pass that reads and keeps as little as it can.

Formulas: RMSNorm (Zhang and Sennrich, 2019), SwiGLU (Shazeer, 2020), rotary positions (Su et al., 2021). Every one
equals what transformers' modules compute, in the number format of the input; statistics are in float32.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, other, where, epsilon):
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = (wide * scale).to(x.dtype)
        ctx.save_for_backward(x, weight, other, where, scale)
        return normed.mul_(_chosen(weight, other, where))

    @staticmethod
    def backward(ctx, gradient):
        x, weight, other, where, scale = ctx.saved_tensors
        wide = x.float()
        g_x = g_weight = g_other = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            per_token = gradient * (wide * scale).to(x.dtype)
            g_weight = per_token.sum(0)
            if other is not None:
                g_other = (per_token * where).sum(0)
                g_weight = g_weight - g_other
        if ctx.needs_input_grad[0]:
            g = (gradient * _chosen(weight, other, where)).float()
            # d(x s)/dx with s = (mean x^2 + eps)^-1/2 is s (g - x s^2 mean(g x))
            inner = torch.linalg.vecdot(g, wide, dim=-1)[:, None].mul_(scale.square()).div_(x.shape[-1])
            g_x = g.addcmul_(wide, inner, value=-1).mul_(scale).to(x.dtype)
        return g_x, g_weight, g_other, None, None


def _chosen(weight, other, where):
    # A gather of rows: `torch.where` with a mask that is broadcast takes five times as long on a CPU.
    return weight if other is None else torch.stack((weight, other)).index_select(0, where[:, 0].int())


def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float, *, other: Tensor | None = None, where: Tensor | None = None
) -> Tensor:
    """RMSNorm of `[n, h]` with a weight `[h]`; with the `other` one for the tokens of `where`, bool `[n, 1]`."""
    result: Tensor = _RMSNorm.apply(x, weight, other, where, epsilon)
    return result


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient):
        gate, up = ctx.saved_tensors
        g_up = F.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), g_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`; keeps its two inputs and nothing else."""
    result: Tensor = _SwiGLU.apply(gate, up)
    return result


class _Rotary(Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, -sin), None, None


def _rotate(x, cos, sin):
    """The halves of the last dimension as the two coordinates of points, turned by an angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)), -1)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions for `[n, heads, d]`, with cosines and sines `[n, 1, d / 2]`; keeps nothing but these."""
    result: Tensor = _Rotary.apply(x, cos, sin)
    return result
