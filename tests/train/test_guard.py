"""Losses and gradients that are not finite: skipped, counted, named; gone back from; given up on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from higgsc.contract.jobs import BatchJob, CheckpointJob, TrainJob
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.data.store import Store
from higgsc.train import training
from higgsc.train.checkpoints.checkpoint import list_checkpoints
from higgsc.train.faults import guard
from higgsc.train.faults.guard import IN_A_ROW, FiniteGuard, NotFiniteError
from higgsc.train.objective.loss import LossModule, LossSums
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.plan import plan_of

from .conftest import Project
from .test_resume import long_job, outcome, stop_at_vote  # noqa: F401

Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Say in which batches (0-based) the loss of the first row is not finite, or only its gradient."""
    forward = LossModule.forward
    state = {"batch": 0, "row": 0}

    def seed(number_of_seed: int, rank: int, batch: int) -> None:
        state.update(batch=batch, row=0)
        torch.manual_seed(batch)

    def poison(bad: set[int], *, gradient_only: bool = False, value: float = float("nan")) -> None:
        def poisoned(self: LossModule, batch: Any, compared: Any = None) -> LossSums:
            sums = forward(self, batch, compared)
            state["row"] += 1
            if not self.training or state["batch"] not in bad or state["row"] > 1:
                return sums
            if gradient_only:
                sums.audio.register_hook(lambda gradient: gradient * value)
                return sums
            return LossSums(sums.audio * value, sums.text)

        monkeypatch.setattr(LossModule, "forward", poisoned)

    monkeypatch.setattr(training, "seed_dropout", seed)
    return poison


def skipped(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project.root / "run" / guard.SKIPPED_FILE).read_text().splitlines()]


def ids(project: Project, job: TrainJob, batch: int) -> list[str]:
    """Of the samples of the first row of a batch."""
    store = Store.open(project.root / "store")
    plan = plan_of(job, store)
    return [store.record(int(index))["id"] for index in sorted(plan.micro_batches(batch, 0)[0])]


def steps_job(project: Project, steps: int, every: int, **changes: Any) -> TrainJob:
    optimizer = project.job().optimizer.model_copy(update={"steps": steps, "decay": "constant"})
    batch = BatchJob(global_samples=4, micro_samples=2, accumulation=2)
    parts = {"optimizer": optimizer, "batch": batch, "checkpoint": CheckpointJob(every_steps=every, keep_last=9)}
    return project.job(**(parts | changes))


@pytest.mark.parametrize("value, gradient_only", [(float("nan"), False), (float("inf"), False), (float("nan"), True)])
def test_a_bad_step_changes_nothing(project: Project, poison: Poison, value: float, gradient_only: bool) -> None:
    """Weights, moments, update count: three steps of which the last is bad are two steps."""
    job = steps_job(project, 3, every=1)
    poison({2}, gradient_only=gradient_only, value=value)
    project.train(job)
    folder = project.root / "run" / "checkpoints"
    for name in ("adapter/adapter_model.safetensors", "optimizer.safetensors"):
        assert (folder / "step-2" / name).read_bytes() == (folder / "step-3" / name).read_bytes()
    assert (folder / "step-1/optimizer.safetensors").read_bytes() != (
        folder / "step-2/optimizer.safetensors"
    ).read_bytes()
    first, second, third = project.metrics()
    assert [line["skipped_steps"] for line in (first, second, third)] == [0, 0, 1]
    assert "loss/audio" not in third  # a stretch of which nothing counted has no mean
    assert third["grad_norm"] == second["grad_norm"]
    (line,) = skipped(project)
    assert line["step"] == 3
    if gradient_only:
        assert line["cause"] == "the gradient was not finite"
        assert len(line["samples"]) == 4
    else:
        assert line["cause"] == "the loss was not finite"
        assert line["samples"] == ids(project, job, 2)


def test_figures_are_means_of_what_counted(project: Project, poison: Poison) -> None:
    """Two of three steps, logged together, are the mean of the two."""
    job = steps_job(project, 3, every=9, optimizer=project.job().optimizer.model_copy(update={"learning_rate": 1e-30}))
    poison({1})
    project.train(job.model_copy(update={"log_every_steps": 3}))
    (together,) = project.metrics()
    project.forget()
    project.train(job)
    first, _, third = project.metrics()
    store = Store.open(project.root / "store")
    plan = plan_of(job, store)
    labels = [int((store.target_frames[plan.global_batch(step)] + 1).sum()) for step in (0, 2)]
    expected = (first["loss/audio"] * labels[0] + third["loss/audio"] * labels[1]) / sum(labels)
    assert together["loss/audio"] == pytest.approx(expected, rel=1e-6)
    assert together["skipped_steps"] == 1


def test_interrupted_after_a_bad_step(project: Project, poison: Poison, stop_at_vote: Any) -> None:  # noqa: F811
    job = long_job(project)
    poison({1, 4})
    project.train(job)
    expected = outcome(project)
    for vote in (3, 8, 11):
        project.forget()
        stop_at_vote(vote)
        assert isinstance(project.attempt(job), Interrupted)
        stop_at_vote(0)
        project.train(job)
        assert outcome(project) == expected, vote
        assert [line["step"] for line in skipped(project)] == [2, 5]


def test_too_many_go_back_and_on_with_other_batches(
    project: Project,
    poison: Poison,
    stop_at_vote: Any,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = steps_job(project, 12, every=4)
    poison(set(range(5, 10)))  # steps 6 to 10
    project.train(job)
    # Not to step-8, which holds what step-5 does.
    assert "not finite at step 10; going back to step-4, and on without the batches of steps 5 to 10" in caplog.text
    assert [line["step"] for line in project.metrics()] == list(range(1, 13))
    store, batch = Store.open(project.root / "store"), job.batch
    assert project.metrics()[-1]["epoch"] == pytest.approx((12 + 6) * batch.global_samples / len(store.train))
    assert project.metrics()[-1]["skipped_steps"] == 0  # those steps were done again, and went well
    expected = outcome(project)

    for vote in (10, 17):  # before and after going back
        project.forget()
        stop_at_vote(vote)
        assert isinstance(project.attempt(job), Interrupted)
        stop_at_vote(0)
        project.train(job)
        assert outcome(project) == expected, vote


def test_given_up_with_the_names_of_the_samples(project: Project, poison: Poison) -> None:
    job = steps_job(project, 30, every=2)
    poison(set(range(5, 99)))
    with pytest.raises(StepError) as caught:
        project.train(job)
    assert "is not finite at step" in str(caught.value)
    assert "going back to a checkpoint 2 times did not help" in str(caught.value)
    assert all(name in str(caught.value) for name in ids(project, job, 5))
    assert str(project.root / "run" / guard.SKIPPED_FILE) in str(caught.value)
    saved = list_checkpoints(project.root / "run" / "checkpoints")
    assert saved[-1].step == 6  # of the third attempt, and the same as step 4
    weights = project.adapter(saved[-1].step)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_nothing_to_go_back_to(project: Project, poison: Poison) -> None:
    poison(set(range(99)))
    with pytest.raises(StepError, match=f"not finite at step {IN_A_ROW} of 9, and there is no checkpoint to"):
        project.train(steps_job(project, 9, every=9))


def test_what_is_too_many() -> None:
    def judged(skipped: list[int]) -> int | None:
        watch = FiniteGuard(Mesh.single(torch.device("cpu")), rows=1)
        try:
            for step in skipped:
                watch.skipped.append(step)
                watch.judge([step])
        except NotFiniteError as error:
            return error.step
        return None

    assert judged([1, 2, 3, 4, 6, 7, 8, 9]) is None
    assert judged([3, 5, 6, 7, 8, 9, 10]) == 9
    assert judged(list(range(0, 95, 5))) is None
    assert judged(list(range(0, 100, 5))) == 95
    assert judged(list(range(0, 1000, 6))) is None


def test_it_does_not_matter_when_it_is_noticed() -> None:
    """A GPU tells of several steps at once."""
    watch = FiniteGuard(Mesh.single(torch.device("cpu")), rows=1)
    nan, one = torch.tensor(float("nan")), torch.tensor(1.0)
    for step in range(1, 9):
        bad = watch.watch(step, one, [nan if step > 2 else one])
        assert bool(bad) is (step > 2)
    with pytest.raises(NotFiniteError, match="at step 7"):
        watch.judge(watch.news(8, wait=True))
