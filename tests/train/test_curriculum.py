"""Curricula: weights and lengths as functions of the step, through interruptions too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from higgsc.contract.jobs import (
    BatchJob,
    CodebookPointJob,
    ContrastiveJob,
    LengthJob,
    LossJob,
    PointJob,
    ScheduleJob,
)
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.train import training
from higgsc.train.rows.batches import BatchPlan
from higgsc.train.rows.curriculum import weights_at

from .conftest import Project

ONES = (1.0,) * 8
LOSS = LossJob(
    text=0.5,
    audio=2.0,
    codebooks=(2.0, *ONES[1:]),
    contrastive=ContrastiveJob(weight=0.4, temperature=0.1),
    schedule=ScheduleJob(
        text=(PointJob(step=1, factor=0.0), PointJob(step=3, factor=1.0)),
        audio=(PointJob(step=0, factor=3.0),),
        codebooks=(
            CodebookPointJob(step=0, factors=(1.0, *(0.0,) * 7)),
            CodebookPointJob(step=4, factors=(1.0, *(1.0,) * 7)),
        ),
    ),
)


def test_weights_are_linear_between_points() -> None:
    assert [weights_at(LOSS, step).text for step in range(5)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    assert {weights_at(LOSS, step).audio for step in range(5)} == {6.0}
    assert [weights_at(LOSS, step).codebooks[:2] for step in (0, 1, 4, 9)] == [(2, 0), (2, 0.25), (2, 1), (2, 1)]
    assert {weights_at(LOSS, step).contrastive for step in range(5)} == {LOSS.contrastive}
    plain = LossJob(text=1, audio=1)
    assert weights_at(plain, 7) is plain


def test_each_step_is_trained_with_its_weights(project: Project) -> None:
    project.train(project.job(loss=LOSS))
    for step, line in enumerate(project.metrics()):
        weights = weights_at(LOSS, step)
        audio = np.average([line[f"loss/audio_codebook_{k}"] for k in range(8)], weights=weights.codebooks)
        total = weights.audio * audio + weights.text * line["loss/text"] + 0.4 * line["loss/contrastive"]
        assert line["loss/total"] == pytest.approx(total, rel=1e-6)


def plan(steps: int, *, samples: int = 50, start: float = 1.0) -> tuple[BatchPlan, Any]:
    frames = np.random.default_rng(0).integers(10, 250, samples)  # 0.4 to 10 s
    batch = BatchJob(global_samples=8, micro_samples=4, accumulation=1)
    job = LengthJob(start_seconds=start, max_seconds=10.0, steps=steps)
    indices, positions = np.arange(100, 100 + samples), np.ones(100 + samples, np.int64)
    return BatchPlan.of(batch, indices, seed=3, world_size=2, positions=positions, lengths=(job, frames)), frames


def test_long_samples_come_later() -> None:
    batches, frames = plan(20)
    longest = [frames[batches.global_batch(step) - 100].max() / 25 for step in range(40)]
    allowed = [1.0 + 9.0 * min(1.0, step / 20) for step in range(40)]
    assert all(length <= limit for length, limit in zip(longest, allowed, strict=True))
    assert max(longest[:5]) < 3.3 < 8 < max(longest[20:])


def test_a_step_does_not_depend_on_which_were_asked_for_before() -> None:
    batches, _ = plan(20)
    expected = [batches.global_batch(step).tolist() for step in range(40)]
    for order in (range(39, -1, -1), (25, 3, 30, 19, 20)):
        again, _ = plan(20)
        assert all(again.global_batch(step).tolist() == expected[step] for step in order)
    shares = [batches.micro_batches(7, rank) for rank in range(2)]
    assert sorted(np.concatenate(shares, axis=None)) == sorted(expected[7])


def test_afterwards_every_sample_comes_once_an_epoch() -> None:
    batches, _ = plan(20)
    stream = np.concatenate([batches.global_batch(step) for step in range(20, 60)])
    counts = np.bincount(stream - 100, minlength=50)
    assert counts.max() - counts.min() <= 1 + 1  # the epoch that it begins in, and the one that it ends in
    first = np.concatenate([batches.global_batch(step) for step in range(2)])
    assert len(set(first[:5].tolist())) == 5


def test_nothing_short_enough_to_begin_with() -> None:
    with pytest.raises(StepError, match="no sample is short enough to begin with: the shortest has 0") as caught:
        plan(20, start=0.2)
    assert "a fifth of the samples has at most" in str(caught.value)


def test_interrupted_in_the_middle(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    job = project.job(
        loss=LOSS,
        curriculum=LengthJob(start_seconds=0.2, max_seconds=0.32, steps=3),
        optimizer=project.job().optimizer.model_copy(update={"steps": 5}),
        log_every_steps=2,
    )
    project.train(job)
    expected, lines = project.adapter(5), [line["loss/total"].hex() for line in project.metrics()]
    project.forget()
    for vote in (3, 2):
        votes = iter(range(1, 99))
        with monkeypatch.context() as patch:
            patch.setattr(training, "asked_to_stop", lambda _, votes=votes, vote=vote: next(votes) == vote)
            assert isinstance(project.attempt(job), Interrupted)
    project.train(job)
    assert all(torch.equal(expected[name], tensor) for name, tensor in project.adapter(5).items())
    assert [line["loss/total"].hex() for line in project.metrics()] == lines
    other = job.model_copy(update={"curriculum": None, "optimizer": job.optimizer.model_copy(update={"steps": 9})})
    with pytest.raises(StepError, match="curriculum"):
        project.train(other)
    assert Path(project.root / "run").exists()
