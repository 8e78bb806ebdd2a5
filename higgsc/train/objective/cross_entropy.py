"""Cross-entropy that keeps one tensor of the logits' size and format, and no copy in float32."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from higgsc.data.delay import IGNORE

_PART = 2**22
"""Logits that are in float32 at a time."""


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, labels):
        kept = labels != IGNORE
        places = labels.clamp(min=0)[:, None]
        losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits)
        rows = max(1, _PART // logits.shape[1])
        for part in range(0, len(labels), rows):
            here = slice(part, part + rows)
            log_shares = torch.log_softmax(logits[here], dim=-1, dtype=torch.float32)
            losses[here] = -log_shares.gather(1, places[here])[:, 0] * kept[here]
            shares = log_shares.exp_()
            shares.scatter_add_(1, places[here], -torch.ones_like(shares[:, :1]))
            torch.mul(shares, kept[here, None], out=shares)
            gradient[here] = shares
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx, g_losses):
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(g_losses[:, None].to(gradient.dtype)), None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each row, in nats, float32 `[n]`; 0 where the label is `IGNORE`. To go backward through once.

    The gradient, `softmax - one-hot`, is made in the forward pass and only multiplied in the backward pass.

    Args:
        logits: `[n, classes]`, in any number format; the sums are in float32.
        labels: int64 `[n]`.
    """
    losses: Tensor = _CrossEntropy.apply(logits, labels)
    return losses
