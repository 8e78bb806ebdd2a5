"""The mask of FlexAttention by blocks: the same as torch makes of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from higgsc.train.decoder.block_mask import BLOCK, block_mask, visible_blocks
from higgsc.train.decoder.routes import Routes

CPU = torch.device("cpu")
NONE = np.zeros(0, dtype=np.int64)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths of segments, and the prefix of each: one before it that has none, or none."""
    lengths = draw(st.lists(st.sampled_from([1, 2, 60, 127, 128, 129, 256, 300]), min_size=1, max_size=7))
    prefixes: list[int] = []
    for number in range(len(lengths)):
        free = [other for other in range(number) if prefixes[other] < 0]
        prefixes.append(draw(st.sampled_from([-1, *free])))
    return lengths, prefixes


def routes_of(lengths: list[int], prefixes: list[int]) -> Routes:
    kinds = np.zeros(sum(lengths), dtype=np.bool_)
    return Routes.of(kinds, lengths, prefixes, audio_labels=NONE, text_labels=NONE)


@settings(deadline=None, max_examples=60)
@given(rows())
def test_blocks_are_those_of_all_pairs(row: tuple[list[int], list[int]]) -> None:
    routes = routes_of(*row)
    made, length = block_mask(routes, CPU), sum(row[0])
    expected = create_block_mask(made.mask_mod, None, None, length, length, device="cpu")
    (partial, full), (other_partial, other_full) = _sets(made), _sets(expected)
    for few, many, some, others in zip(full, other_full, partial, other_partial, strict=True):
        assert few <= many
        assert not few & some
        assert few | some == many | others
    assert torch.equal(made.to_dense(), expected.to_dense())


def _sets(mask: Any) -> list[list[set[int]]]:
    """Of each block of queries, the blocks of keys that it sees in part, and those that it sees wholly."""
    parts = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    return [
        [set(row[:count]) for row, count in zip(indices[0, 0].tolist(), counts[0, 0].tolist(), strict=True)]
        for counts, indices in parts
    ]


@pytest.mark.parametrize("prefixes, full", [([-1, -1], 2), ([-1, 0], 8)])
def test_most_of_a_long_row_is_not_looked_at(prefixes: list[int], full: int) -> None:
    """Two segments of three and two blocks: below the diagonal they are full, and so is all of a prefix."""
    blocks = visible_blocks(routes_of([3 * BLOCK, 2 * BLOCK], prefixes), CPU)
    diagonal = int((blocks.any & ~blocks.full).sum())
    assert (diagonal, int(blocks.full.sum())) == (5, 4 if prefixes == [-1, -1] else 10)
