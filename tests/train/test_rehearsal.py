"""The longest row comes first, leaves no trace, and says what to change if it does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from higgsc.contract.jobs import BatchJob, MeshJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.store import Store
from higgsc.train import training
from higgsc.train.faults.rehearsal import out_of_memory
from higgsc.train.objective.loss import LossModule
from higgsc.train.rows import batches as by_samples
from higgsc.train.rows.batches import BatchPlan
from higgsc.train.rows.plan import plan_of

from .conftest import Project
from .test_resume import long_job, outcome, stop_at_vote  # noqa: F401


@pytest.fixture
def on_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "REHEARSES", ("cpu",))


@pytest.mark.parametrize("at_a_time", [1, 36, 1 << 20])
def test_the_longest_row_of_the_run(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    """Against a search step by step, over several epochs, processes and rows that cross from one into the next."""
    monkeypatch.setattr(by_samples, "_SAMPLES_AT_A_TIME", at_a_time)
    lengths = np.random.default_rng(0).integers(1, 1000, 40)
    plan = BatchPlan(
        indices=np.arange(1, 38), positions=lengths, seed=3, global_samples=12, micro_samples=3, world_size=2
    )
    for batches in (1, 7, 20):
        rows = [row for step in range(batches) for rank in range(2) for row in plan.micro_batches(step, rank)]
        found = plan.longest_row(batches)
        assert lengths[found].sum() == max(lengths[row].sum() for row in rows)
        assert any(np.array_equal(found, row) for row in rows)


def test_it_leaves_no_trace(project: Project, monkeypatch: pytest.MonkeyPatch, stop_at_vote: Any) -> None:  # noqa: F811
    """With dropout, at the beginning and when a training is taken up again."""
    job = long_job(project)
    project.train(job)
    expected = outcome(project)
    project.forget()
    monkeypatch.setattr(training, "REHEARSES", ("cpu",))
    rows = []
    rehearse = training.rehearse

    def noted(row: Any, **rest: Any) -> None:
        rows.append(row)
        state = torch.get_rng_state()
        rehearse(row, **rest)
        assert torch.equal(torch.get_rng_state(), state)

    monkeypatch.setattr(training, "rehearse", noted)
    stop_at_vote(5)
    project.attempt(job)
    stop_at_vote(0)
    project.train(job)
    assert outcome(project) == expected
    assert len(rows) == 2
    project.train(job)  # finished: there is nothing to rehearse
    assert len(rows) == 2


@pytest.mark.usefixtures("on_cpu_too")
def test_it_runs_out_of_memory_before_the_first_step(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LossModule.forward
    calls = []

    def tight(self: LossModule, batch: Any, compared: Any = None) -> Any:
        calls.append(batch.tokens)
        if batch.tokens >= longest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return forward(self, batch, compared)

    monkeypatch.setattr(LossModule, "forward", tight)
    job = project.job(batch=BatchJob(global_samples=4, micro_samples=2, accumulation=2))
    store = Store.open(project.root / "store")
    row = plan_of(job, store).longest_row(3)
    longest = int(store.lengths[row].sum())
    with pytest.raises(StepError) as caught:
        project.train(job)
    assert calls == [longest]
    assert caught.value.code == ExitCode.OUT_OF_MEMORY
    assert f"2 samples of {longest} positions, the longest clip 0." in str(caught.value)
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in str(caught.value)
    assert "`training.micro_batch.samples: 1` (now 2; the global batch stays the same)" in str(caught.value)
    assert "`data.limits.max_seconds: 1`" in str(caught.value)


@pytest.mark.parametrize(
    "batch, mesh, micro, shard",
    [
        ((12, 6, 1), (2, 1), "3` (now 6", "2` (now 1), so that 2 GPUs"),
        ((5, 5, 1), (1, 1), "1` (now 5", "2` (now 1) on more GPUs"),
        ((4, 1, 2), (1, 2), None, "4` (now 2) on more GPUs"),
    ],
)
def test_what_to_change(
    project: Project, batch: tuple[int, int, int], mesh: tuple[int, int], micro: str | None, shard: str
) -> None:
    sizes = dict(zip(("global_samples", "micro_samples", "accumulation"), batch, strict=True))
    job = project.job(batch=BatchJob(**sizes), mesh=MeshJob(replicate=mesh[0], shard=mesh[1]))
    error = str(out_of_memory(job, torch.OutOfMemoryError("CUDA out of memory."), None))
    assert f"`parallelism.shard: {shard}" in error
    assert f"`training.micro_batch.samples: {micro}" in error if micro else "micro_batch" not in error


@pytest.mark.parametrize(
    "mesh, here, way",
    [
        ((1, 1, 1), 1, "`parallelism: {tensor: 2, sequence: true}` on 2 GPUs of one machine"),
        ((4, 1, 1), 4, "`parallelism: {tensor: 2, sequence: true}`, so that 2 GPUs share each row"),
        ((1, 8, 1), 8, "`parallelism: {shard: 4, tensor: 2, sequence: true}`, so that 2 GPUs share each row"),
        ((2, 8, 1), 8, "`parallelism: {shard: 8, tensor: 2, sequence: true}`, so that 2 GPUs share each row"),
        ((1, 2, 4), 8, "`parallelism: {tensor: 8, sequence: true}`, so that 8 GPUs share each row"),
        ((1, 1, 8), 8, None),  # the released base has eight key-value heads
    ],
)
def test_tensor_groups_for_a_row_that_is_one_sample(
    project: Project, monkeypatch: pytest.MonkeyPatch, mesh: tuple[int, int, int], here: int, way: str | None
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    shape = MeshJob(replicate=mesh[0], shard=mesh[1], tensor=mesh[2])
    model = project.job().model.model_copy(update={"base": "org/released"})

    def ways(samples: int, **changes: Any) -> str:
        batch = BatchJob(global_samples=samples * shape.data_parallel, micro_samples=samples, accumulation=1)
        job = project.job(mesh=shape, batch=batch, model=model, **changes)
        return str(out_of_memory(job, torch.OutOfMemoryError("CUDA out of memory."), None))

    assert way in ways(1) if way else "tensor" not in ways(1)
    for other in (ways(2), ways(1, compile=True), ways(1, lora=project.job().lora.model_copy(update={"dora": True}))):
        assert "tensor" not in other


def test_running_out_later_is_explained_too(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LossModule, "forward", forward)
    with pytest.raises(StepError, match="out of GPU memory: CUDA out of memory") as caught:
        project.train(project.job())
    assert caught.value.code == ExitCode.OUT_OF_MEMORY
