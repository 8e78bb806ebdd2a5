"""Several processes train what one trains: real ranks, started by torchrun, talking over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from higgsc.contract.jobs import BatchJob, MeshJob, TrainJob

from .conftest import Project

DRIVER = """
import sys
from pathlib import Path
import torch
from higgsc.contract.jobs import StepContext, load_job
from higgsc.train.step import run

torch.set_num_threads(1)
path = Path(sys.argv[1])
job = load_job(path)
result = run(job, StepContext.of(path, job))
print("validation", result.figures["validation/audio_loss"])
"""


def torchrun(project: Project, job: TrainJob, processes: int) -> subprocess.CompletedProcess[str]:
    driver = project.root / "driver.py"
    driver.write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(driver), str(project.write(job))],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("replicate, shard", [(2, 1), (1, 2)])
def test_two_ranks_equal_one(project: Project, replicate: int, shard: int) -> None:
    project.train(project.job())
    alone, alone_metrics = project.adapter(3), project.metrics()
    project.forget()

    job = project.job(
        mesh=MeshJob(replicate=replicate, shard=shard),
        batch=BatchJob(global_samples=4, micro_samples=1, accumulation=2),
    )
    finished = torchrun(project, job, 2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    together = project.adapter(3)
    assert together.keys() == alone.keys()
    moved = max(tensor.abs().max().item() for name, tensor in alone.items() if "lora_B" in name)
    assert moved > 1e-2
    for name, tensor in alone.items():
        # AdamW divides a gradient by its size, so the rounding of one that is nearly zero shows. The norms are below.
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")

    # Same figures, the validation of three samples on two ranks among them, and one writer.
    metrics = project.metrics()
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line, expected in zip(metrics, alone_metrics, strict=True):
        for name in ("loss/total", "loss/audio", "loss/text", "grad_norm", "loss/audio_codebook_7", "learning_rate"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5), name
    assert metrics[-1]["validation/audio_loss"] == pytest.approx(alone_metrics[-1]["validation/audio_loss"], rel=1e-5)
    assert finished.stdout.count("validation") == 2


@pytest.mark.slow
def test_sharding_a_bf16_base_with_a_float32_adapter(project: Project) -> None:
    """Both number formats lie in one FSDP2 unit; rounding makes the figures differ, but not by much."""
    project.train(project.job(precision="bf16"))
    alone = project.metrics()
    project.forget()
    job = project.job(
        precision="bf16",
        mesh=MeshJob(replicate=1, shard=2),
        batch=BatchJob(global_samples=4, micro_samples=2, accumulation=1),
    )
    finished = torchrun(project, job, 2)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert {tensor.dtype for tensor in project.adapter(3).values()} == {torch.float32}
    for line, expected in zip(project.metrics(), alone, strict=True):
        assert line["loss/total"] == pytest.approx(expected["loss/total"], abs=0.02)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_ranks(project: Project) -> None:
    job = project.job(
        mesh=MeshJob(replicate=2, shard=1),
        batch=BatchJob(global_samples=4, micro_samples=2, accumulation=1),
        optimizer=project.job().optimizer.model_copy(update={"learning_rate": 1e30, "decay": "constant"}),
    )
    finished = torchrun(project, job, 2)
    assert finished.returncode != 0
    assert "not finite at step 2 of 3" in finished.stderr
    assert not (project.root / "run" / "checkpoints").exists()
