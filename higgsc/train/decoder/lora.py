"""Linear layers with adapters: several that read the same input, in as few products as possible.

    y_i = x W_i^T + s_i (x A_i^T) B_i^T          (Hu et al., 2021)

The A of all layers are stacked, so that the input is read once for all of them; `t B^T` is added where the base's
product lies; without dropout no second input is kept, and no gradient of a frozen weight is computed. Equal to PEFT's
`lora.Linear` up to the order of additions.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd import Function

_ADAPTER = "default"


class _Project(Function):
    """`(y_1, y_2, ...)` from `x`, frozen `W_i`, trained `A_i`, `B_i` and scales `s_i`."""

    @staticmethod
    def forward(ctx, x, scales, in_place, *matrices):
        count = len(scales)
        weights, downs, ups = matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
        low = x @ torch.cat([matrix.to(x.dtype) for matrix in downs]).T
        parts = low.split([len(matrix) for matrix in downs], dim=1)
        outputs = []
        for weight, part, up, scale in zip(weights, parts, ups, scales, strict=True):
            base, last = x @ weight.T, up.to(x.dtype).T
            if in_place:
                outputs.append(base.addmm_(part, last, alpha=scale))
            else:
                outputs.append(torch.addmm(base, part, last, alpha=scale))
        ctx.scales = scales
        ctx.save_for_backward(x, low, *matrices)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients):
        x, low, *matrices = ctx.saved_tensors
        scales, count = ctx.scales, len(ctx.scales)
        weights, downs, ups = matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
        ranks = [len(matrix) for matrix in downs]
        g_lows, g_ups = [], []
        for gradient, part, up, scale in zip(gradients, low.split(ranks, dim=1), ups, scales, strict=True):
            g_lows.append((gradient @ up.to(x.dtype)).mul_(scale))
            g_ups.append((part.T @ gradient).T.to(up.dtype).mul_(scale))
        g_low = torch.cat(g_lows, dim=1)
        g_downs = (g_low.T @ x).to(downs[0].dtype).split(ranks)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = gradients[0] @ weights[0]
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                g_x.addmm_(gradient, weight)
            g_x.addmm_(g_low, torch.cat([matrix.to(x.dtype) for matrix in downs]))
        return g_x, None, None, *(None for _ in weights), *g_downs, *g_ups


def project(x: Tensor, *modules: nn.Module, in_place: bool = True) -> tuple[Tensor, ...]:
    """What linear modules make of one input `[n, in]`: an output `[n, out_i]` for each.

    Modules that are more than a frozen weight and a plain adapter (dropout, DoRA, a trained base, no adapter at all)
    are called as they are.

    Args:
        x: The input.
        modules: That read it.
        in_place: Whether nobody keeps the base's own products, which adapters are added to.
    """
    outputs: dict[nn.Module, Tensor] = {}
    plain: list[Any] = [module for module in modules if _is_plain(module)]
    if plain:
        scales = tuple(float(module.scaling[_ADAPTER]) for module in plain)
        weights = (module.base_layer.weight for module in plain)
        downs = (module.lora_A[_ADAPTER].weight for module in plain)
        ups = (module.lora_B[_ADAPTER].weight for module in plain)
        outputs.update(zip(plain, _Project.apply(x, scales, in_place, *weights, *downs, *ups), strict=True))
    return tuple(outputs[module] if module in outputs else module(x) for module in modules)


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is LoraLinear
        and type(module.base_layer) is nn.Linear
        and module.base_layer.bias is None
        and not module.base_layer.weight.requires_grad
        and module.active_adapters == [_ADAPTER]
        and not module.merged
        and not module.disable_adapters
        and isinstance(module.lora_dropout[_ADAPTER], nn.Identity)
        and not module.lora_bias[_ADAPTER]
        and not module.use_dora[_ADAPTER]
    )
