"""Linear layers with adapters: several that read the same input, in as few products as possible.

    y_i = x W_i^T + s_i (x A_i^T) B_i^T          (Hu et al., 2021)

The A of all layers are stacked, so that the input is read once for all of them; `t B^T` is added where the base's
product lies; without dropout no second input is kept, and no gradient of a frozen weight is computed. Equal to PEFT's
`lora.Linear` up to the order of additions. The frozen weights may be quantised (see `quantized.py`).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd import Function

from higgsc.train.decoder.quantized import Parts, QuantizedLinear, Scheme, input_gradient, products

_ADAPTER = "default"


class _Project(Function):
    """`(y_1, y_2, ...)` from `x`, trained `A_i`, `B_i` and scales `s_i`, and the parts of all frozen `W_i`."""

    @staticmethod
    def forward(ctx, x, scales, scheme, in_place, *matrices):
        downs, ups, weights = _divided(matrices, len(scales))
        low = x @ torch.cat([matrix.to(x.dtype) for matrix in downs]).T
        parts = low.split([len(matrix) for matrix in downs], dim=1)
        outputs = []
        for base, part, up, scale in zip(products(x, weights, scheme), parts, ups, scales, strict=True):
            last = up.to(x.dtype).T
            if in_place:
                outputs.append(base.addmm_(part, last, alpha=scale))
            else:
                outputs.append(torch.addmm(base, part, last, alpha=scale))
        ctx.scales, ctx.scheme = scales, scheme
        ctx.save_for_backward(x, low, *matrices)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients):
        x, low, *matrices = ctx.saved_tensors
        scales = ctx.scales
        downs, ups, weights = _divided(matrices, len(scales))
        ranks = [len(matrix) for matrix in downs]
        g_lows, g_ups = [], []
        for gradient, part, up, scale in zip(gradients, low.split(ranks, dim=1), ups, scales, strict=True):
            g_lows.append((gradient @ up.to(x.dtype)).mul_(scale))
            g_ups.append((part.T @ gradient).T.to(up.dtype).mul_(scale))
        g_low = torch.cat(g_lows, dim=1)
        g_downs = (g_low.T @ x).to(downs[0].dtype).split(ranks)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = input_gradient(gradients, weights, ctx.scheme)
            g_x.addmm_(g_low, torch.cat([matrix.to(x.dtype) for matrix in downs]))
        return g_x, None, None, None, *g_downs, *g_ups, *(None for _ in matrices[2 * len(scales) :])


def _divided(matrices, count):
    """The A, the B and the parts of the frozen weights."""
    downs, ups, rest = matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
    size = len(rest) // count
    return downs, ups, [rest[start : start + size] for start in range(0, len(rest), size)]


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
        scheme, weights = _frozen([module.base_layer for module in plain])
        downs = (module.lora_A[_ADAPTER].weight for module in plain)
        ups = (module.lora_B[_ADAPTER].weight for module in plain)
        outputs.update(zip(plain, _Project.apply(x, scales, scheme, in_place, *downs, *ups, *weights), strict=True))
    return tuple(outputs[module] if module in outputs else module(x) for module in modules)


def _frozen(layers: list[Any]) -> tuple[Scheme | None, list[Tensor]]:
    """How frozen layers that read the same input are quantised, all of them alike; and what they consist of."""
    schemes = {layer.scheme if isinstance(layer, QuantizedLinear) else None for layer in layers}
    assert len(schemes) == 1, "a block is quantised as a whole"
    parts: list[Parts] = [layer.parts if isinstance(layer, QuantizedLinear) else (layer.weight,) for layer in layers]
    return schemes.pop(), [part for of_one in parts for part in of_one]


def _is_frozen(layer: Any) -> bool:
    if isinstance(layer, QuantizedLinear):
        return True
    return type(layer) is nn.Linear and layer.bias is None and not layer.weight.requires_grad


def _is_plain(module: Any) -> bool:
    return (
        type(module) is LoraLinear
        and _is_frozen(module.base_layer)
        and module.active_adapters == [_ADAPTER]
        and not module.merged
        and not module.disable_adapters
        and isinstance(module.lora_dropout[_ADAPTER], nn.Identity)
        and not module.lora_bias[_ADAPTER]
        and not module.use_dora[_ADAPTER]
    )
