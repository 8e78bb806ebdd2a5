"""The order of samples, and packing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from higgsc.contract.jobs import BatchJob, OptimizerJob
from higgsc.contract.outcome import StepError
from higgsc.train.decoder.routes import Routes
from higgsc.train.objective.loss import LossModule
from higgsc.train.rows.batches import BatchPlan
from higgsc.train.rows.order import epoch_order
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import MakeSample


def plan(*, world_size: int, micro: int, accumulation: int, samples: int = 10, seed: int = 7) -> BatchPlan:
    batch = BatchJob(global_samples=world_size * micro * accumulation, micro_samples=micro, accumulation=accumulation)
    indices = np.arange(100, 100 + samples)
    return BatchPlan.of(batch, indices, seed=seed, world_size=world_size, positions=np.ones(100 + samples, np.int64))


def optimizer(*, epochs: float | None = None, steps: int | None = None) -> OptimizerJob:
    return OptimizerJob(
        learning_rate=1e-3,
        warmup_steps=0,
        decay="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        epochs=epochs,
        steps=steps,
    )


def test_every_sample_exactly_once_per_epoch() -> None:
    # A global batch of 4 does not divide 10 samples: batches straddle the epochs, the stream does not care.
    batches = plan(world_size=2, micro=2, accumulation=1)
    stream = np.concatenate([batches.global_batch(step) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[epoch * 10 : (epoch + 1) * 10]) == list(range(100, 110))
    assert not (stream[:10] == stream[10:20]).all()


def test_a_global_batch_larger_than_the_epoch_goes_round_again() -> None:
    batch = plan(world_size=1, micro=25, accumulation=1).global_batch(0)
    assert sorted(batch[:10]) == sorted(batch[10:20]) == list(range(100, 110))


@pytest.mark.parametrize("world_size, micro, accumulation", [(1, 8, 1), (2, 4, 1), (4, 1, 2), (8, 1, 1), (2, 2, 2)])
def test_the_order_does_not_depend_on_the_number_of_processes(world_size: int, micro: int, accumulation: int) -> None:
    batches = plan(world_size=world_size, micro=micro, accumulation=accumulation)
    alone = plan(world_size=1, micro=8, accumulation=1)
    for step in range(5):
        shares = [batches.micro_batches(step, rank) for rank in range(world_size)]
        assert all([len(row) for row in share] == [micro] * accumulation for share in shares)
        assert sorted(np.concatenate(shares, axis=None)) == sorted(alone.global_batch(step))


def test_the_order_is_a_function_of_the_seed() -> None:
    assert epoch_order(3, 0, 50).tolist() == epoch_order(3, 0, 50).tolist()
    assert epoch_order(3, 0, 50).tolist() != epoch_order(4, 0, 50).tolist()
    assert epoch_order(3, 0, 50).tolist() != epoch_order(3, 1, 50).tolist()
    # Written down, so that a change of the order, which would break resuming, does not go unnoticed.
    assert epoch_order(0, 0, 8).tolist() == EXPECTED_ORDER


EXPECTED_ORDER = [4, 6, 3, 5, 2, 1, 0, 7]


def test_a_mesh_of_another_size_is_refused() -> None:
    batch = BatchJob(global_samples=8, micro_samples=2, accumulation=1)
    with pytest.raises(
        StepError, match=r"micro_samples\(2\) \* accumulation\(1\) \* data-parallel ranks\(2\) = 4 != global"
    ):
        BatchPlan.of(batch, np.arange(5), seed=0, world_size=2, positions=np.ones(5, np.int64))


@pytest.mark.parametrize("epochs, expected", [(1, 7), (3, 23), (0.5, 3), (0.01, 1)])
def test_steps_from_epochs(epochs: float, expected: int) -> None:
    batches = plan(world_size=1, micro=4, accumulation=1, samples=31)
    assert batches.total_steps(optimizer(epochs=epochs)) == expected


def test_steps_as_given() -> None:
    assert plan(world_size=1, micro=4, accumulation=1).total_steps(optimizer(steps=5)) == 5


def test_a_packed_row_has_the_loss_and_gradients_of_its_sequences(
    model: Any, tokens: AudioTokens, make_sample: MakeSample
) -> None:
    lengths = ((5, 4), (1, 1), (3, 9), (12, 2))
    sequences = [
        build_sequence(make_sample(seed, reference=r, target=t), tokens) for seed, (r, t) in enumerate(lengths)
    ]
    module = LossModule(model)

    def sums_and_gradients(batches: list[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        module.zero_grad()
        total = torch.zeros(9)
        for batch in batches:
            sums = module(batch)
            (sums.audio.sum() / 150 + sums.text / 12).backward()
            total += torch.cat((sums.audio.detach(), sums.text.detach()[None]))
        return total, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    apart, apart_gradients = sums_and_gradients([pack([sequence]) for sequence in sequences])
    packed, packed_gradients = sums_and_gradients([pack(sequences)])
    torch.testing.assert_close(packed, apart, rtol=1e-6, atol=1e-6)
    assert packed_gradients.keys() == apart_gradients.keys()
    for name, gradient in apart_gradients.items():
        torch.testing.assert_close(
            packed_gradients[name], gradient, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_packed_row_keeps_its_sequences_apart(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    """The check above can fail: one row as a single segment gives another loss."""
    sequences = [build_sequence(make_sample(seed), tokens) for seed in range(2)]
    row = pack(sequences)
    module = LossModule(model)
    with torch.no_grad():
        right = module(row)
        whole = Routes.of(
            row.routes.is_audio[:, 0].numpy(),
            [row.tokens],
            audio_labels=row.audio_positions.numpy(),
            text_labels=row.text_positions.numpy(),
        )
        wrong = module(replace(row, routes=whole))
    assert (right.audio - wrong.audio).abs().max() > 1e-3
