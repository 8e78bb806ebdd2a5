"""The closed forms of the arithmetic on cases small enough to add up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.higgs_audio_v2 import TINY

from .setups import setup


def test_flops_of_one_adapter_by_hand() -> None:
    """4 a frozen weight, 6 an adapter's; the two feed-forward networks share the tokens; attention by its keys."""
    found = setup(TINY, targets=("self_attn.q_proj",))
    attention_weights = 2 * 128 * 128 + 2 * 64 * 128
    network = 3 * 128 * 256
    frozen = 4 * (attention_weights + network) + 8 * 1026 * 128
    adapter = 4 * 16 * (128 + 128)
    assert flops_per_token(found, keys=0) == 4 * frozen + 6 * adapter
    assert flops_per_token(found, keys=0, audio_share=0.3) == pytest.approx(4 * frozen + 6 * adapter)
    less = 4 * (128 * 128 + network) + 4 * 8 * 1026 * 128  # the last layer's output projection and network, the head
    assert flops_per_token(found, keys=0, labelled=0.25) == 4 * frozen + 6 * adapter - 0.75 * less
    two = replace(found, tensor=2)
    halves = 4 * (attention_weights + network) // 2 + 8 * 1026 * 128
    assert flops_per_token(two, keys=0) == 4 * halves + 6 * 4 * 16 * (128 + 64)
    assert flops_per_token(found, keys=100) - flops_per_token(found, keys=0) == 14 * 100 * 128 * 4
