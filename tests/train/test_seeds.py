"""Random numbers: from the seed and the purpose, and from nothing else."""

from __future__ import annotations

import itertools

import torch

from higgsc.contract.jobs import BatchJob
from higgsc.train.checkpoints.progress import seed_dropout
from higgsc.train.seeds import Purpose, sequence, torch_seed

from .conftest import Project


def test_no_two_purposes_or_numbers_share_a_seed() -> None:
    numbers: list[tuple[int, ...]] = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    seeds = [torch_seed(s, p, *n) for s, p, n in itertools.product((0, 1, 2**32 - 1), Purpose, numbers)]
    assert len(set(seeds)) == len(seeds)


def test_seeds_are_written_down() -> None:
    """A change would make a run that goes on another one, so it must not go unnoticed."""
    assert [torch_seed(1, purpose) for purpose in Purpose] == EXPECTED
    assert sequence(1, Purpose.ORDER, 2).generate_state(1).tolist() == [EXPECTED_ORDER]


def test_dropout_differs_by_share_and_step_and_comes_again() -> None:
    def draw(rank: int, step: int) -> list[float]:
        seed_dropout(7, rank, step)
        drawn: list[float] = torch.rand(4).tolist()
        return drawn

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(rank, step)) for rank in range(3) for step in range(3)}) == 9


def test_a_resubmission_reproduces(project: Project) -> None:
    """Dropout and all, whatever was drawn in the process before."""
    lora = project.job().lora.model_copy(update={"dropout": 0.3})
    job = project.job(lora=lora, batch=BatchJob(global_samples=4, micro_samples=2, accumulation=2))
    project.train(job)
    first = project.adapter(3)
    project.forget()
    torch.rand(17)
    project.train(job)
    assert all(torch.equal(first[name], tensor) for name, tensor in project.adapter(3).items())
    project.forget()
    project.train(job.model_copy(update={"seed": 2}))
    assert any(not torch.equal(first[name], tensor) for name, tensor in project.adapter(3).items())


EXPECTED = [
    4042681867674859579,
    1275975541612323131,
    10440292027562320097,
    11724249445994358946,
    5892472470897923492,
]
EXPECTED_ORDER = 1158480471
