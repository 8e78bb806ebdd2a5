"""Learning-rate schedule and clipping."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from higgsc.contract.jobs import OptimizerJob
from higgsc.train.optimizer import adamw, learning_rate, set_learning_rate


def job(decay: Literal["constant", "linear", "cosine"], warmup: int = 4) -> OptimizerJob:
    return OptimizerJob(
        learning_rate=2e-3,
        warmup_steps=warmup,
        decay=decay,
        weight_decay=0.0,
        max_grad_norm=1.0,
        epochs=None,
        steps=12,
    )


def test_warm_up_rises_to_the_peak() -> None:
    rates = [learning_rate(step, job("constant"), total=12) for step in range(12)]
    assert rates[:5] == pytest.approx([0.5e-3, 1e-3, 1.5e-3, 2e-3, 2e-3])
    assert set(rates[3:]) == {2e-3}


def test_linear_and_cosine_fall_towards_zero() -> None:
    linear = [learning_rate(step, job("linear"), total=12) for step in range(4, 12)]
    assert linear == pytest.approx([2e-3 * (8 - k) / 8 for k in range(8)])
    cosine = [learning_rate(step, job("cosine"), total=12) for step in range(4, 12)]
    assert cosine[0] == 2e-3
    assert cosine[4] == pytest.approx(1e-3)
    assert cosine == sorted(cosine, reverse=True)
    assert learning_rate(12, job("cosine"), total=12) == pytest.approx(0)


def test_a_warm_up_longer_than_the_training() -> None:
    assert learning_rate(11, job("cosine", warmup=100), total=12) == pytest.approx(2e-3 * 12 / 100)


def test_the_rate_is_the_one_that_the_step_uses() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = adamw([parameter], job("constant"))
    set_learning_rate(optimizer, 0.25)
    parameter.grad = torch.ones(3)
    optimizer.step()
    # Adam's first step is the learning rate, whatever the gradient's size.
    assert parameter.tolist() == pytest.approx([-0.25] * 3, rel=1e-5)
