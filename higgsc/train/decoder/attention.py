"""Attention within each segment of a packed row, and to the prefix that several segments share; never across.

The cost grows with the sum of the segments' squared lengths, that of a mask over the row with the square of the sum.

    CPU                              one fused kernel a segment, and one more for its prefix
    GPU, bf16, no shared prefixes    torch's `varlen_attn` (FlashAttention, see `flash.py`)
    GPU otherwise                    FlexAttention with a block mask

The GPU's kernels were not run by the people who wrote this; what is handed to them is tested with stand-ins.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
from functools import cache
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn

from higgsc.train.decoder.block_mask import block_mask
from higgsc.train.decoder.flash import newest_flash
from higgsc.train.decoder.routes import Routes, Row

logger = logging.getLogger(__name__)

_ATEN = torch.ops.aten
_CAUSAL = (-1, 0)
"""Any number of tokens before, none after."""
_GROUPED = "enable_gqa" in signature(varlen_attn).parameters
"""Whether query heads may share a key-value head, since torch 2.12; before, each gets a copy of its own."""


def attend(query: Tensor, key: Tensor, value: Tensor, row: Row) -> Tensor:
    """Attention of `[L, heads, d]` over `[L, key-value heads, d]`; `[L, heads, d]`."""
    routes = row.routes
    match kernel(query.device, query.dtype, shared=routes.shared):
        case "segments":
            mixed: Tensor = segments(query, key, value, routes.starts, routes.prefixes)[0]
        case "varlen":
            mixed = _varlen(query, key, value, routes)
        case "flex":
            batched = (heads.transpose(0, 1)[None] for heads in (query, key, value))
            mixed = _flex()(*batched, block_mask=row.mask, enable_gqa=True)[0].transpose(0, 1)
    return mixed


def kernel(device: torch.device, dtype: torch.dtype, *, shared: bool) -> str:
    """What attends on a device: `segments`, `varlen` or `flex`."""
    if device.type == "cpu":
        return "segments"
    return "varlen" if dtype in (torch.bfloat16, torch.float16) and not shared else "flex"


def announce(device: torch.device, dtype: torch.dtype, *, shared: bool) -> None:
    """Log what will attend on a device; from then on it is the newest FlashAttention.

    Args:
        device: Where.
        dtype: Number format of queries, keys and values.
        shared: Whether there may be rows with shared prefixes.

    Raises:
        StepError: See `newest_flash`.
    """
    alone, other = (kernel(device, dtype, shared=shared) for shared in (False, True))
    version = f" (FlashAttention {newest_flash(device)})" if alone == "varlen" else ""
    there = f"; {other} in rows that share a reference" if shared and other != alone else ""
    logger.info("attention on %s: %s%s%s", device.type, alone, version, there)


def mask_of(routes: Routes, device: torch.device, dtype: torch.dtype) -> Any:
    """The mask that `attend` wants in the row, made once for all layers; None where it wants none."""
    return block_mask(routes, device) if kernel(device, dtype, shared=routes.shared) == "flex" else None


def _varlen(query: Tensor, key: Tensor, value: Tensor, routes: Routes) -> Tensor:
    options: dict[str, Any] = {"enable_gqa": True} if _GROUPED else {}
    if not _GROUPED:
        key, value = (heads.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for heads in (key, value))
    ends = routes.starts, routes.starts, routes.longest, routes.longest
    mixed: Tensor = varlen_attn(query, key, value, *ends, window_size=_CAUSAL, **options)  # type: ignore[assignment]
    return mixed


@cache
def _flex() -> Any:
    # Where it cannot be one graph, torch would compute all pairs of tokens, and without a word.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@torch.library.custom_op("higgsc::segments", mutates_args=())
def segments(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, prefixes: Tensor) -> tuple[Tensor, Tensor]:
    """Attention on a CPU, one operation to the compiler and to activation checkpointing.

    A segment's own part and its prefix's are computed apart and put together by their log-sum-exps (Milakov and
    Gimelshein, 2018), exactly; backward goes through each with the sum's.

    Returns:
        The attention `[L, heads, d]`, and its log-sum-exp, float32 `[heads, L]`.
    """
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    for own, before in _pairs(starts, prefixes):
        out, weight = _kernel(query[own], key[own], value[own], causal=True)
        if before is not None:
            other, other_weight = _kernel(query[own], key[before], value[before], causal=False)
            total = torch.logaddexp(weight, other_weight)
            out = out * _share(weight, total) + other * _share(other_weight, total)
            weight = total
        mixed[own], lse[:, own] = out, weight
    return mixed, lse


@torch.library.custom_op("higgsc::segments_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed: Tensor,
    lse: Tensor,
    starts: Tensor,
    prefixes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    g_query, g_key, g_value = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value))
    for own, before in _pairs(starts, prefixes):
        for keys in (own, before):
            if keys is None:
                continue
            parts = _kernel_backward(
                gradient[own], query[own], key[keys], value[keys], mixed[own], lse[:, own], causal=keys == own
            )
            if keys == own:
                g_query[own], g_key[own], g_value[own] = parts
            else:
                for whole, place, part in zip((g_query, g_key, g_value), (own, keys, keys), parts, strict=True):
                    whole[place] += part
    return g_query, g_key, g_value


def _pairs(starts: Tensor, prefixes: Tensor) -> list[tuple[slice, slice | None]]:
    """Each segment's place, and its prefix's; prefixes come before what they are the prefix of."""
    ends = starts.tolist()
    places = [slice(first, last) for first, last in pairwise(ends)]
    return [
        (own, places[before] if before >= 0 else None) for own, before in zip(places, prefixes.tolist(), strict=True)
    ]


def _share(part: Tensor, total: Tensor) -> Tensor:
    return (part - total).exp().T[..., None]


def _grouped(query: Tensor, *shared: Tensor) -> list[Tensor]:
    """As `[key-value heads, heads of each, n, d]`, without a copy; key-value heads are shared by their query heads."""
    heads = shared[0].shape[1]
    grouped = query.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)
    expanded = (tensor.permute(1, 0, 2)[:, None].expand(-1, grouped.shape[1], -1, -1) for tensor in shared)
    return [grouped, *expanded]


def _kernel(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    grouped = _grouped(query, key, value)
    out, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(*grouped, 0.0, causal)
    return out.permute(2, 0, 1, 3).flatten(1, 2), lse.flatten(0, 1)


def _kernel_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    heads = key.shape[1]
    grouped = _grouped(query, key, value)
    outs = (tensor.unflatten(1, (heads, -1)).permute(1, 2, 0, 3) for tensor in (gradient, out))
    g_query, g_key, g_value = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
        next(outs), *grouped, next(outs), lse.unflatten(0, (heads, -1)).contiguous(), 0.0, causal
    )
    return (
        g_query.permute(2, 0, 1, 3).flatten(1, 2),
        g_key.sum(1).permute(1, 0, 2),
        g_value.sum(1).permute(1, 0, 2),
    )


@segments.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, prefixes: Tensor) -> tuple[Tensor, Tensor]:
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    return mixed, query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


@_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    like = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value))
    return next(like), next(like), next(like)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, starts, prefixes = inputs
    ctx.save_for_backward(query, key, value, *output, starts, prefixes)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(gradient, *ctx.saved_tensors), None, None)


segments.register_autograd(_gradients, setup_context=_keep)
