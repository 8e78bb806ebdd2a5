"""How fast a device multiplies matrices: what a step's time is compared with."""

from __future__ import annotations

import torch

from training.clock import now
from training.samples import Shape


def matmul_rate(device: torch.device, shape: Shape) -> float:
    """FLOP/s of the model's own largest product, `[4096, inner] x [inner, hidden]`, in its number format."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(4096, shape.inner, device=device, dtype=dtype)
    weight = torch.randn(shape.inner, shape.hidden, device=device, dtype=dtype)
    best = 0.0
    for _ in range(8):
        start = now(device)
        x @ weight
        best = max(best, 2 * x.numel() * shape.hidden / (now(device) - start))
    return best
