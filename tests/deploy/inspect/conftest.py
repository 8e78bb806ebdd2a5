"""Checkpoints of a real training of the tiny model, made once; each test works on a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from higgsc.contract.jobs import CheckpointJob  # noqa: E402
from tests.train.conftest import make_project  # noqa: E402


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 2, 4, 6 of a training; the one of step 4 would be kept for good."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    project = make_project(tmp_path_factory.mktemp("project"))
    job = project.job()
    project.train(
        project.job(
            optimizer=job.optimizer.model_copy(update={"steps": 6}),
            checkpoint=CheckpointJob(every_steps=2, keep_last=9, keep_every=4),
        )
    )
    torch.set_num_threads(threads)
    return project.root / "run" / "checkpoints"


@pytest.fixture
def checkpoints(trained: Path, tmp_path: Path) -> Path:
    """A folder of checkpoints that may be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))
