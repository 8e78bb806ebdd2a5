"""The closed forms of the memory on cases small enough to add up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.catalog.memory import memory, saved_by_adapters
from higgsc.catalog.setup import Sample

from .setups import COMPREHENSIVE, SAMPLE, changed, setup


def test_lengths_of_a_sample() -> None:
    """Two clips of 10 s are 250 frames each with 9 rows around them, and 8 text tokens a second."""
    assert Sample(reference=250, target=250, text=160) == SAMPLE
    assert SAMPLE.audio_rows == 250 + 250 + 18
    assert SAMPLE.tokens == 518 + 160
    assert SAMPLE.labelled_rows == 250 + 1 + 7
    assert Sample.of_seconds(0.01, 0.01) == Sample(reference=1, target=1, text=5)


def test_weights_moments_and_gradients() -> None:
    """q_proj is 3072 x 3072 in each of 28 layers; rank 16 adds 16 x 6144 float32 parameters to it."""
    adapter = 28 * 16 * (3072 + 3072)
    found = memory(setup(accumulation=2), SAMPLE, 1)
    assert setup().trained_parameters == adapter == 2_752_512
    assert found.base == 2 * 5_771_283_456
    assert found.adapter == 4 * adapter
    assert found.optimizer == 8 * adapter
    assert found.gradients == 4 * adapter
    assert found.gathered == 0
    assert found.total == sum(found.parts.values())
    assert memory(setup(precision="fp32"), SAMPLE, 1).base == 4 * 5_771_283_456
    assert memory(setup(), SAMPLE, 1).gradients == 0  # nothing is left behind by an earlier micro-batch


def test_a_quantised_base() -> None:
    """The ten matrices of each layer: a byte a number and 4 a row; half a byte a number and 4 for 64 of them."""
    numbers = 28 * (2 * 3072 * 3072 + 2 * 1024 * 3072 + 6 * 3072 * 8192)
    rows = 28 * (2 * 3072 + 2 * 1024 + 4 * 8192 + 2 * 3072)
    rest = 2 * (5_771_283_456 - numbers)
    for scheme, stored in (("fp8", numbers + 4 * rows), ("int8", numbers + 4 * rows), ("nf4", numbers * 9 // 16)):
        found = memory(setup(quantize=scheme), SAMPLE, 1)
        assert found.base == stored + rest
        assert found.adapter == memory(setup(), SAMPLE, 1).adapter
        sharded = memory(setup(quantize=scheme, shard=4), SAMPLE, 1)
        assert sharded.base == found.base // 4
        assert sharded.gathered == rest - 28 * 4 * 3072 * 2 + stored // 28 + 4 * 3072 * 2 + 4 * 16 * 6144
    nf4, fp8 = (memory(setup(quantize=scheme), SAMPLE, 32) for scheme in ("nf4", "fp8"))
    assert nf4.working - fp8.working == 6 * 3072 * 8192  # one matrix in float32, beside what it is looked up by


def test_shards_divide_what_is_kept_and_gather_what_is_used() -> None:
    whole, half = (memory(setup(accumulation=2, shard=shard), SAMPLE, 8) for shard in (1, 2))
    assert (half.base, half.adapter, half.optimizer) == (whole.base // 2, whole.adapter // 2, whole.optimizer // 2)
    assert half.gradients == whole.gradients  # scattered only after the last micro-batch
    assert half.activations == whole.activations
    attention, networks = 2 * 3072 * 3072 + 2 * 1024 * 3072, 2 * 3 * 3072 * 8192
    layer = 2 * (attention + networks + 4 * 3072) + 4 * 16 * 6144
    root = 2 * (2 * 128_256 * 3072 + 2 * 8 * 1026 * 3072 + 3072)
    assert half.gathered == root + layer


def test_a_tensor_group_divides_matrices_and_not_the_rest() -> None:
    """Rank 16 on q (column-parallel: A whole) and down (row-parallel: B whole) of the released model, on two GPUs."""
    targets = ("self_attn.q_proj", "audio_mlp.down_proj")
    found = memory(setup(tensor=2, targets=targets), SAMPLE, 1)
    adapter = 28 * 16 * ((3072 + 3072 // 2) + (3072 + 8192 // 2))
    attention, networks = 2 * 3072 * 3072 + 2 * 1024 * 3072, 2 * 3 * 3072 * 8192
    root = 2 * 128_256 * 3072 + 2 * 8 * 1026 * 3072 + 3072
    assert found.base == 2 * (28 * ((attention + networks) // 2 + 4 * 3072) + root)
    assert (found.adapter, found.optimizer, found.gathered) == (4 * adapter, 8 * adapter, 0)
    sharded = memory(setup(tensor=2, shard=4, targets=targets), SAMPLE, 1)
    assert (sharded.base, sharded.adapter) == (found.base // 4, found.adapter // 4)


def test_a_sequence_that_is_divided_divides_the_residual_stream() -> None:
    """What the norms keep, 2h + 4 bytes a token, twice a layer, is halved; but the last layer, and the norm behind it,
    then have all tokens instead of the labelled ones."""
    plain, divided = (memory(setup(tensor=2, sequence=sequence), SAMPLE, 4) for sequence in (False, True))
    saved = plain.activations - divided.activations
    assert saved == pytest.approx(4 * SAMPLE.tokens * 27 * 2 * (2 * 3072 + 4) // 2, rel=0.1)
    assert (divided.base, divided.adapter) == (plain.base, plain.adapter)


@pytest.mark.parametrize("precision, s", [("bf16", 2), ("fp32", 4)])
def test_activations_of_two_layers(precision: str, s: int) -> None:
    """Two layers with q_proj adapted, by the docstrings of the closed form; the last has labelled tokens after its
    attention: 258 with audio labels and one more audio row, and two of text."""
    tokens, labelled, h, f, a, heads, r = SAMPLE.tokens, 258 + 1 + 2, 128, 256, 128, 4, 16
    keys = TINY.key_value_heads * TINY.head_dim
    attention = (s * h + 4) + 2 * s * (a + keys) + 4 * heads + s * (r + h)
    rest = s * h + 4 + 2 * s * f
    final = labelled * (s * h + 4)
    found = memory(setup(replace(TINY, layers=2), precision=precision), SAMPLE, 1)
    assert found.activations == 2 * tokens * attention + (tokens + labelled) * rest + final


def test_what_adapters_keep() -> None:
    """Query, key and value share their input; with dropout PEFT makes copies of it for each, and masks."""

    def saved(precision: str, *targets: str, dropout: float = 0.0) -> int:
        names = tuple(f"self_attn.{target}_proj" for target in targets)
        return sum(saved_by_adapters(setup(TINY, precision=precision, targets=names, dropout=dropout)).values())

    rank, inputs = 16, 128
    assert saved("fp32", "q") == 4 * (rank + inputs)
    assert saved("bf16", "q", "k", "v") == 2 * (3 * rank + inputs)
    assert saved("fp32", "o") == 4 * rank  # its input is the attention's output, which is kept anyway
    assert saved("bf16", "q", "k", "v", dropout=0.1) == 3 * (2 * (rank + inputs) + inputs)


def test_text_and_audio_networks_see_their_own_tokens() -> None:
    text = saved_by_adapters(setup(TINY, targets=("mlp.up_proj",)))
    audio = saved_by_adapters(setup(TINY, targets=("audio_mlp.up_proj",)))
    assert text == {("mlp", "text"): 2 * 16, ("mlp", "all"): 2 * 128}  # both read from one tensor
    assert audio == {("mlp", "audio"): 2 * 16, ("mlp", "all"): 2 * 128}


def test_memory_grows_with_what_makes_it_grow() -> None:
    plain = setup(targets=COMPREHENSIVE)
    at_least = memory(plain, SAMPLE, 2).total
    assert memory(plain, SAMPLE, 3).total > at_least
    assert memory(plain, Sample.of_seconds(11, 10), 2).total > at_least
    more = (
        {"rank": 32},
        {"dropout": 0.1},
        {"dora": True},
        {"full": ("audio_lm_head",)},
        {"rank_pattern": (("mlp.*", 99),)},
    )
    for change in (*more, {"precision": "fp32"}, {"accumulation": 2}):
        assert memory(changed(plain, **change), SAMPLE, 2).total > at_least, change
    assert memory(changed(plain, shard=8), SAMPLE, 2).total < at_least
    assert memory(changed(plain, replicate=8), SAMPLE, 2).total == at_least


def test_checkpointed_layers_keep_less_and_compute_more() -> None:
    """Full: the inputs of 28 layers in bf16, and one layer; the layers are computed twice."""
    modes = [setup(targets=COMPREHENSIVE, activation_checkpointing=mode) for mode in ("none", "selective", "full")]
    needs = [memory(mode, SAMPLE, 16).total for mode in modes]
    assert needs == sorted(needs, reverse=True)
    inputs = 28 * 2 * 3072 * 16 * SAMPLE.tokens
    layer = (memory(modes[0], SAMPLE, 16).activations) / 27.3  # the last is a smaller one
    assert memory(modes[2], SAMPLE, 16).activations == pytest.approx(inputs + layer, rel=0.1)
    flops = [flops_per_token(mode, keys=100) for mode in modes]
    assert flops[0] < flops[1] < flops[0] * 1.05 < flops[2]
    layers = 28 * (2 * 3072 * 3072 + 2 * 1024 * 3072 + 3 * 3072 * 8192)
    adapter = sum(16 * sum(sizes) for name, sizes in modes[0].modules.items() if ".mlp." not in name)
    assert flops[2] - flops[0] == 2 * layers + 2 * adapter + 4 * 100 * 3072 * 28
