"""Rows of a token budget: full, whole, and the same whoever asks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgsc.contract.jobs import BatchJob, LengthJob
from higgsc.contract.outcome import StepError
from higgsc.train.rows.packing import WINDOW, deal, fill_rows
from higgsc.train.rows.shared import Shared
from higgsc.train.rows.tokens import TokenPlan

from .test_batches import optimizer


def speech(samples: int, seed: int = 0) -> Any:
    """Lengths as corpora have them: log-normal seconds of reference and target, 33 tokens a second."""
    seconds = np.clip(np.random.default_rng(seed).lognormal(np.log(7), 0.6, (samples, 2)), 1, 30).sum(axis=1)
    return (seconds * 33 + 23).astype(np.int64)


def narrow(samples: int) -> Any:
    """A reference for all, and short targets: hard to fill with, as none is very short."""
    seconds = np.clip(np.random.default_rng(0).lognormal(np.log(4), 0.4, samples), 1, 12)
    return (seconds * 33 + 8 * 33 + 23).astype(np.int64)


@pytest.mark.parametrize("budget", [4096, 8192, 16384, 32768])
@pytest.mark.parametrize("lengths", [speech(20_000), narrow(20_000)], ids=["speech", "narrow"])
def test_rows_are_full(lengths: Any, budget: int) -> None:
    rows = fill_rows(lengths.tolist(), budget)
    assert sorted(rows.order) == list(range(len(lengths)))
    tokens = np.array([lengths[rows[row]].sum() for row in range(len(rows))])
    assert tokens.max() <= budget
    assert tokens[:-1].sum() / (len(rows) - 1) / budget > 0.999  # the last has what is left
    assert np.abs(rows.order - np.arange(len(lengths))).max() <= WINDOW  # nobody is put off, or pulled forward, far


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 60), max_size=80),
    budget=st.integers(60, 200),
    window=st.sampled_from([0, 1, 5, 2048]),
)
def test_every_unit_is_in_one_row_that_holds_it(lengths: list[int], budget: int, window: int) -> None:
    rows = fill_rows(lengths, budget, window)
    members = [rows[row].tolist() for row in range(len(rows))]
    assert sorted(number for row in members for number in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[number] for number in row) <= budget for row in members)
    if window == 0:
        assert rows.order.tolist() == list(range(len(lengths)))
    # What is next is in the row, unless others filled it better and left no room for it.
    taken: set[int] = set()
    for row in members:
        head = min(set(range(len(lengths))) - taken)
        room = budget - sum(lengths[number] for number in row)
        assert head in row or lengths[head] > room
        assert max(row) <= head + window + len(taken) + len(row) + 1
        taken |= set(row)


@settings(deadline=None, max_examples=50)
@given(costs=st.lists(st.floats(1, 100), min_size=24, max_size=24), ranks=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]))
def test_ranks_have_as_much_to_do(costs: list[float], ranks: int) -> None:
    shares = deal(np.array(costs), ranks)
    assert shares.shape == (ranks, 24 // ranks)
    assert sorted(shares.ravel()) == list(range(24))
    loads = np.array(costs)[shares].sum(axis=1)
    assert loads.max() - loads.min() <= max(costs) - min(costs) + 1e-9


SAMPLES = 300
POSITIONS = np.r_[np.full(50, 10**9), speech(SAMPLES, seed=2)]  # those below 50 are no training samples


def groups(seed: int = 0) -> Shared:
    """Forty references; those of the first ten are shared by many."""
    random = np.random.default_rng(seed)
    alike = np.minimum(random.geometric(0.1, 50 + SAMPLES), 40) + 1000
    return Shared(alike, (alike % 7 + 1) * 8)


def plan(
    *, world_size: int = 1, rows: int = 4, budget: int = 4096, seed: int = 7, shared: Shared | None = None, **more: Any
) -> TokenPlan:
    batch = BatchJob(global_tokens=rows * budget, micro_tokens=budget, accumulation=rows // world_size)
    indices = np.arange(50, 50 + SAMPLES)
    return TokenPlan(
        batch, indices, seed=seed, world_size=world_size, positions=POSITIONS, shared=shared, cost=(1e3, 1.0), **more
    )


@pytest.mark.parametrize("shared", [None, groups()], ids=["apart", "shared"])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), rows=st.sampled_from([1, 2, 4, 8]), budget=st.sampled_from([2048, 3000, 8192]))
def test_every_sample_once_an_epoch(shared: Shared | None, seed: int, rows: int, budget: int) -> None:
    batches = plan(rows=rows, budget=budget, seed=seed, shared=shared)
    per_epoch = [len(batches._epochs.epoch(epoch)) for epoch in range(3)]
    steps = sum(per_epoch) // rows
    stream = [row for step in range(steps) for row in batches.rows(step)]
    for epoch, first in enumerate(np.cumsum([0, *per_epoch[:-1]])):
        visited = Counter(np.concatenate(stream[first : first + per_epoch[epoch]]).tolist())
        missing = stream[first : first + per_epoch[epoch]]
        if len(missing) == per_epoch[epoch]:
            assert visited == Counter(range(50, 50 + SAMPLES))
    assert all(batches.tokens(row) <= budget for row in stream)
    assert batches.epochs(0) == 0
    assert batches.epochs(steps) == pytest.approx(3, abs=(rows + 1) / per_epoch[-1])
    assert batches.total_steps(optimizer(epochs=3)) == steps
    assert batches.total_steps(optimizer(epochs=0.001)) == 1
    assert batches.total_steps(optimizer(steps=11)) == 11


@pytest.mark.parametrize("shared", [None, groups()], ids=["apart", "shared"])
def test_a_step_depends_neither_on_ranks_nor_on_what_was_asked_before(shared: Shared | None) -> None:
    alone = plan(shared=shared)
    expected = [sorted(alone.global_batch(step).tolist()) for step in range(60)]
    for world_size in (1, 2, 4):
        batches = plan(world_size=world_size, shared=shared)
        for step in (59, 3, 30, 0, 31):
            shares = [batches.micro_batches(step, rank) for rank in range(world_size)]
            assert all(len(share) == 4 // world_size for share in shares)
            found = [int(sample) for share in shares for row in share for sample in row]
            assert sorted(found) == expected[step]
            assert len(batches.spared(step)) == len(batches.global_batch(step))
    others = plan(seed=8, shared=shared)
    assert sorted(others.global_batch(0).tolist()) != expected[0]


def test_ranks_are_balanced_by_cost() -> None:
    """Rows are as long, but attention costs by squares: 64 rows dealt to 8 ranks, at the 3B's proportions."""
    lengths = speech(20_000)
    batch = BatchJob(global_tokens=64 * 16384, micro_tokens=16384, accumulation=8)
    cost = (11.6e9, 14.0 * 3072 * 28)
    batches = TokenPlan(batch, np.arange(20_000), seed=0, world_size=8, positions=lengths, cost=cost)
    for step in range(5):
        shares = np.array([[batches.cost(row) for row in batches.micro_batches(step, rank)] for rank in range(8)])
        assert np.ptp(shares.sum(axis=1)) / shares.sum(axis=1).mean() < 1e-3
        assert (np.ptp(shares, axis=0) / shares.mean(axis=0)).max() < 0.01


def test_what_many_samples_share_is_in_a_row_once() -> None:
    shared = groups()
    found = plan(shared=shared, budget=8192).packing()
    apart = plan(budget=8192).packing()
    assert found.apart == apart.apart == apart.tokens == POSITIONS[50:].sum()
    # All that could be shared: each of a reference's samples but one.
    own = shared.groups[50:]
    most = sum(int(shared.prefixes[50:][own == group][0]) * int((own == group).sum() - 1) for group in set(own))
    assert 0.75 * most < apart.tokens - found.tokens <= most
    assert found.fill > 0.95


def test_who_shares_changes_from_epoch_to_epoch() -> None:
    batches = plan(shared=groups())
    together = []
    for epoch in range(2):
        rows = batches._epochs.epoch(epoch)
        together.append({frozenset(rows[row].tolist()) for row in range(len(rows))})
    assert not together[0] & together[1]


def test_the_longest_row_is_the_longest() -> None:
    batches = plan(budget=3000, rows=2)
    rows = [row for step in range(9) for row in batches.rows(step)]
    assert batches.tokens(batches.longest_row(9)) == max(batches.tokens(row) for row in rows)


def test_the_order_is_written_down() -> None:
    """A change of it would break resuming, and must not go unnoticed."""
    assert plan(budget=2048, rows=2).global_batch(1).tolist() == [147, 225, 201, 181, 79, 55, 109]
    shared = [344, 267, 102, 318, 343]
    assert plan(budget=4096, rows=1, shared=groups()).global_batch(3).tolist() == shared


def test_a_batch_that_does_not_divide_is_refused() -> None:
    batch = BatchJob(global_tokens=100, micro_tokens=64, accumulation=1)
    with pytest.raises(StepError, match=r"micro_tokens\(64\) \* accumulation\(1\) \* data-parallel ranks\(2\) = 128"):
        TokenPlan(batch, np.arange(5), seed=0, world_size=2, positions=np.ones(5, np.int64))


def test_long_samples_come_later() -> None:
    frames = (POSITIONS[50:] - 23) * 25 // 33
    job = LengthJob(start_seconds=8.0, max_seconds=60.0, steps=10)
    batches = plan(shared=groups(), lengths=(job, frames))
    longest = [frames[batches.global_batch(step) - 50].max() / 25 for step in range(20)]
    assert all(length <= 8 + 52 * min(1, step / 10) for step, length in enumerate(longest))
    for step in (19, 3, 11, 9, 10):  # in any order
        assert sorted(plan(shared=groups(), lengths=(job, frames)).global_batch(step)) == sorted(
            batches.global_batch(step)
        )
    assert all(len(batches.rows(step)) == 4 for step in range(20))
    # Afterwards, every sample once an epoch.
    assert batches._later is not None
    second = batches._later.epoch(1)
    assert sorted(second.order.tolist()) == list(range(50, 50 + SAMPLES))
