"""The mask that FlexAttention wants of a packed row, worked out for blocks of tokens and not for each pair of them.

`create_block_mask` of torch fills a matrix of all pairs first, which for a row of 16,384 tokens is 268 million, for
every micro-batch. Segments are ranges, so which blocks see each other follows from where they begin and end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from higgsc.train.decoder.routes import Routes

BLOCK = 128
"""Tokens of a block, FlexAttention's usual."""


class Blocks(NamedTuple):
    """Which blocks of keys a block of queries sees, bool `[n, n]` each."""

    any: Tensor
    """At least one query sees at least one key."""
    full: Tensor
    """Every query sees every key."""


def block_mask(routes: Routes, device: torch.device) -> BlockMask:
    """The mask of a row, made on the device without waiting for it."""
    length = len(routes.by_place)
    segment, prefix = _by_token(routes, length, device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (segment[query] == segment[key]) & (query >= key)
        return own | (prefix[query] == segment[key])

    blocks = visible_blocks(routes, device)
    return BlockMask.from_kv_blocks(
        *_listed(blocks.any & ~blocks.full),
        *_listed(blocks.full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def visible_blocks(routes: Routes, device: torch.device) -> Blocks:
    """Which blocks see each other."""
    length = len(routes.by_place)
    count = -(-length // BLOCK)
    segment, prefix = _by_token(routes, length, device)
    number = torch.arange(count, device=device)
    heads, tails = number * BLOCK, (number * BLOCK + BLOCK - 1).clamp_max(length - 1)
    first, last = segment[heads], segment[tails]

    starts = routes.starts.to(device).long()
    begins, ends = starts[:-1] // BLOCK, (starts[1:] - 1) // BLOCK
    touches = (begins[:, None] <= number) & (number <= ends[:, None])  # [segments, blocks]
    prefixes = routes.prefixes.to(device).long()
    before = touches[prefixes] & (prefixes >= 0)[:, None]
    of_prefix = touches.T.float() @ before.float() > 0
    # A block's queries see all that lies between the beginning of the first one's segment and themselves.
    own = (number <= number[:, None]) & (number >= begins[first][:, None])

    whole = tails - heads + 1 == BLOCK
    # Queries of one segment see blocks before theirs that hold nothing but that segment and, right before it, its
    # prefix; queries of several that have one prefix see the blocks that are all of it. A block that is full for a
    # rarer reason is taken to be full of holes, which costs a look at each pair and changes nothing.
    one = ((first == last) & whole)[:, None]
    seen = [(end == first[:, None]) | (end == prefix[heads][:, None]) for end in (first, last)]
    full = one & (number < number[:, None]) & seen[0] & seen[1] & (last - first <= 1)
    common = torch.where(_same(prefix, count) & whole, prefix[heads], -1)[:, None]
    full |= (common >= 0) & (first == common) & (last == common)
    return Blocks(own | of_prefix, full & whole)


def _by_token(routes: Routes, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Each token's segment, and that segment's prefix, int64 `[length]` each."""
    places = torch.arange(length, device=device)
    segment = torch.searchsorted(routes.starts[1:].to(device), places, right=True)
    return segment, routes.prefixes.to(device).long()[segment]


def _same(values: Tensor, count: int) -> Tensor:
    """Whether the tokens of a block have one value, for each block; the last may be short."""
    padded = torch.cat((values, values[-1:].expand(count * BLOCK - len(values)))).view(count, BLOCK)
    return padded.amin(1) == padded.amax(1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many, and which ones first, as FlexAttention wants them: int32 `[1, 1, n]` and `[1, 1, n, n]`."""
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], order.int()[None, None]
