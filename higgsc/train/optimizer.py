"""AdamW over what is trained, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from higgsc.contract.jobs import OptimizerJob


def adamw(parameters: Sequence[nn.Parameter], job: OptimizerJob) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) with its usual betas 0.9 and 0.999."""
    return torch.optim.AdamW(
        parameters, lr=job.learning_rate, weight_decay=job.weight_decay, betas=(0.9, 0.999), eps=1e-8, fused=True
    )


def learning_rate(step: int, job: OptimizerJob, *, total: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total`.

    It rises linearly over the warm-up and reaches its peak in the warm-up's last step; `linear` and `cosine` then
    fall towards 0, which they would reach one step after the last.
    """
    if step < job.warmup_steps:
        return job.learning_rate * (step + 1) / job.warmup_steps
    progress = (step - job.warmup_steps) / max(1, total - job.warmup_steps)
    match job.decay:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1.0 - progress
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    return job.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use `value` for the next step of every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = value
