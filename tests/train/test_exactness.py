"""However often and wherever a training is interrupted, it is the training that never was."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from higgsc.contract.jobs import BatchJob, CheckpointJob
from higgsc.data.store import Store
from higgsc.train import training
from higgsc.train.objective.loss import LossModule
from higgsc.train.rows.ahead import Ahead
from higgsc.train.rows.inputs import StepInput

from .conftest import Project
from .test_resume import finish, long_job, outcome, stop_at_vote  # noqa: F401


class Killed(BaseException):
    """As a signal 9 would: nobody catches it, and nothing is saved."""


def short_job(project: Project, steps: int, every: int, **changes: Any) -> Any:
    """Steps of two micro-batches, with dropout, each with its figures."""
    optimizer = long_job(project).optimizer.model_copy(update={"steps": steps})
    checkpoint = CheckpointJob(every_steps=every, keep_last=2)
    return long_job(project, optimizer=optimizer, checkpoint=checkpoint, log_every_steps=1, **changes)


@pytest.mark.slow
def test_a_hundred_interruptions_are_none(project: Project, stop_at_vote: Any) -> None:  # noqa: F811
    """One after every step of a hundred: each attempt gets one step further."""
    job = short_job(project, 101, every=1000, batch=BatchJob(global_samples=2, micro_samples=1, accumulation=2))
    project.train(job)
    expected = outcome(project)
    project.forget()
    attempts = []
    attempt = Project.attempt

    def counted(self: Project, job: Any) -> Any:
        attempts.append(1)
        return attempt(self, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Project, "attempt", counted)
        finish(project, job, [2] * 100, stop_at_vote)
    assert len(attempts) == 100 + 1
    assert outcome(project) == expected


@pytest.mark.parametrize("forward", [13, 14])
def test_killed_within_a_step(project: Project, monkeypatch: pytest.MonkeyPatch, forward: int) -> None:
    """Before and between the micro-batches of step 6; checkpoints after steps 4 and 8."""
    job = short_job(project, 10, every=4)
    project.train(job)
    expected = outcome(project)
    project.forget()
    run, calls = LossModule.forward, []

    def die(self: LossModule, batch: Any, compared: Any = None) -> Any:
        if self.training:
            calls.append(1)
            if len(calls) == forward:
                raise Killed
        return run(self, batch, compared)

    with monkeypatch.context() as patch:
        patch.setattr(LossModule, "forward", die)
        with pytest.raises(Killed):
            project.attempt(job)
    assert [line["step"] for line in project.metrics()] == [1, 2, 3, 4, 5, 6][: (forward - 1) // 2]
    project.train(job)
    assert outcome(project) == expected


def test_no_sample_twice_or_missing_in_an_epoch(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    stop_at_vote: Any,  # noqa: F811
) -> None:
    """Stopped, and killed with steps that were not saved: those that count visit every sample once an epoch."""
    job = short_job(project, 14, every=4)
    visited: list[list[str]] = []
    step, ask = training.Training._optimizer_step, Ahead.step
    store = Store.open(project.root / "store")

    def noted(self: Ahead, number: int) -> StepInput:
        taken = ask(self, number)
        visited[-1] += [store.record(int(index))["id"] for row in taken.rows for index in row]
        return taken

    def stepping(self: Any, number: int) -> None:
        del visited[number:]  # steps that were done but not saved are done again
        visited.append([])
        step(self, number)

    monkeypatch.setattr(Ahead, "step", noted)
    monkeypatch.setattr(training.Training, "_optimizer_step", stepping)
    stop_at_vote(4)
    project.attempt(job)
    stop_at_vote(0)
    died = []

    def die(self: Any, number: int) -> None:
        if number == 9 and not died:
            died.append(number)
            raise Killed
        stepping(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_optimizer_step", die)
        with pytest.raises(Killed):
            project.attempt(job)
    project.train(job)
    stream = [name for batch in visited[:14] for name in batch]
    assert len(stream) == 14 * 4
    everyone = Counter(store.record(int(index))["id"] for index in store.train)
    for epoch in range(8):
        assert Counter(stream[7 * epoch : 7 * (epoch + 1)]) == everyone, epoch
