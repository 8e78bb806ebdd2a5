"""Verdicts and speeds: consistent with the costs that they rest on, and open about what is assumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from higgsc.catalog.estimate import (
    UTILISATION,
    duration,
    estimate,
    fits,
    largest_batch,
    longest_row,
    rounded,
    speed,
    usable,
)
from higgsc.catalog.gpus import GPUS
from higgsc.catalog.memory import memory
from higgsc.catalog.setup import Sample

from .setups import COMPREHENSIVE, setup

ADAPTED = setup(targets=COMPREHENSIVE)
LONG = Sample.of_seconds(30, 30)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("sample", [Sample.of_seconds(5, 5), LONG], ids=["short", "long"])
def test_the_largest_batch_fits_and_one_more_does_not(gpu, sample) -> None:  # type: ignore[no-untyped-def]
    largest = largest_batch(ADAPTED, sample, gpu)
    assert largest == 0 or fits(ADAPTED, sample, largest, gpu)
    assert not fits(ADAPTED, sample, largest + 1, gpu)
    assert largest == sum(memory(ADAPTED, sample, n).total <= usable(gpu) for n in range(1, 400))


def test_the_largest_batch_follows_the_memory() -> None:
    by_memory = sorted(GPUS.values(), key=lambda gpu: gpu.memory_bytes)
    sizes = [largest_batch(ADAPTED, LONG, gpu) for gpu in by_memory]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    shards = [largest_batch(replace(ADAPTED, shard=shard), LONG, GPUS["H100"]) for shard in (2, 4, 8)]
    assert shards == sorted(shards)


def test_a_tenth_of_the_gpu_stays_free() -> None:
    assert usable(GPUS["H100"]) == 72 * 10**9


def test_speed_is_arithmetic_over_the_assumed_share_of_the_peak() -> None:
    two = replace(ADAPTED, replicate=2, accumulation=4)
    found = speed(two, 10.0, 3, GPUS["H100"], steps=900)
    assert found.tokens_per_second * found.flops_per_token == pytest.approx(UTILISATION * 989e12)
    assert found.step_seconds == pytest.approx(4 * 3 * found.sample.tokens / found.tokens_per_second)
    # A step trains on 2 GPUs x 4 x 3 samples with 10 s of target speech each.
    assert found.speech_hours_per_hour == pytest.approx(2 * 4 * 3 * 10 / found.step_seconds)
    assert found.total_hours == pytest.approx(900 * found.step_seconds / 3600)
    assert found.total_gpu_hours == pytest.approx(2 * found.total_hours)
    assert "25% of the GPU's peak is assumed" in found.assumption
    assert speed(two, 10.0, 3, GPUS["H100"], steps=None).total_gpu_hours is None


def test_the_gpus_of_a_tensor_group_share_the_work_of_a_row() -> None:
    """Not quite twice as fast: the heads, and the whole halves of the adapters, are computed by both."""
    alone = speed(ADAPTED, 10.0, 3, GPUS["H100"], steps=1)
    pair = speed(replace(ADAPTED, tensor=2), 10.0, 3, GPUS["H100"], steps=1)
    assert pair.tokens_per_second * pair.flops_per_token == pytest.approx(UTILISATION * 989e12)
    assert 0.5 < pair.step_seconds / alone.step_seconds < 0.55
    assert pair.speech_hours_per_hour == pytest.approx(3 * 10 / pair.step_seconds)
    assert pair.total_gpu_hours == pytest.approx(2 * pair.step_seconds / 3600)
    assert "tensor groups" in pair.assumption
    assert "tensor groups" not in alone.assumption


@pytest.mark.parametrize("gpu", [GPUS["H100"], GPUS["RTX4090"]], ids=lambda gpu: gpu.name)
def test_the_longest_row_fits_and_a_longer_one_does_not(gpu) -> None:  # type: ignore[no-untyped-def]
    for tokens in (64, 1000, 16_384):
        assert Sample.of_tokens(tokens).tokens == tokens
    longest = longest_row(ADAPTED, gpu)
    assert longest == 0 or fits(ADAPTED, Sample.of_tokens(longest), 1, gpu)
    assert not fits(ADAPTED, Sample.of_tokens(longest + 1), 1, gpu)
    limits = {"max_seconds": 30.0, "typical_seconds": 10.0}
    found = estimate(ADAPTED, samples=0, tokens=8192, gpu=gpu, steps=100, **limits)
    assert (found.row, found.largest_tokens, found.fits) == ("a row of 8,192 tokens", longest, longest >= 8192)
    assert found.memory == memory(ADAPTED, Sample.of_tokens(8192), 1)
    assert found.speed is not None
    assert found.speed.step_seconds == pytest.approx(8192 / found.speed.tokens_per_second)
    # As much as a row of the longest samples takes.
    by_samples, by_tokens = memory(ADAPTED, LONG, 4), memory(ADAPTED, Sample.of_tokens(4 * LONG.tokens), 1)
    assert by_tokens.total == pytest.approx(by_samples.total, rel=0.01)


def test_nothing_is_said_about_what_is_unknown() -> None:
    common = {"samples": 4, "max_seconds": 30.0, "typical_seconds": 10.0, "steps": 100}
    nowhere = estimate(ADAPTED, gpu=None, unknown="no GPU", **common)
    assert (nowhere.fits, nowhere.largest, nowhere.largest_tokens, nowhere.speed) == (None, None, None, None)
    assert nowhere.unknown == "no GPU"
    assert nowhere.memory.total > 0
    fp32 = estimate(replace(ADAPTED, precision="fp32"), gpu=GPUS["H200"], **common)
    assert fp32.fits is not None
    assert fp32.speed is None
    assert fp32.unknown == "the catalog knows no float32 peak"


@pytest.mark.parametrize(
    "hours, text", [(0.5, "30 min"), (0.001, "0.06 min"), (1.84, "1.8 h"), (37.2, "37 h"), (12345, "12,000 h")]
)
def test_durations_do_not_look_measured(hours: float, text: str) -> None:
    assert duration(hours) == text
    assert rounded(19_980) == "20,000"
