"""Several processes train what one trains: real ranks, started by torchrun, talking over gloo."""

from __future__ import annotations

import pytest
import torch

from higgsc.contract.jobs import BatchJob, MeshJob
from higgsc.train.parallel.mesh import Mesh

from .conftest import Project
from .ranks import errors, train


@pytest.mark.slow
def test_two_ranks_equal_one(project: Project) -> None:
    """Data parallel, sharded, and in a tensor group; in bfloat16 with float32 adapters too, where rounding differs."""
    meshes = {
        "replicate": MeshJob(replicate=2, shard=1),
        "shard": MeshJob(replicate=1, shard=2),
        "tensor": MeshJob(replicate=1, shard=1, tensor=2, sequence=True),
    }
    jobs = {}
    for precision in ("fp32", "bf16"):
        jobs[f"alone-{precision}"] = project.job(precision=precision, **_folders(f"alone-{precision}"))
        for name, mesh in meshes.items():
            batch = BatchJob(global_samples=4, micro_samples=1, accumulation=4 // mesh.data_parallel)
            run = f"{name}-{precision}"
            jobs[run] = project.job(precision=precision, mesh=mesh, batch=batch, **_folders(run))
    for precision in ("fp32", "bf16"):
        project.train(jobs.pop(f"alone-{precision}"))
    finished = train(project, 2, *jobs.values())
    assert finished.returncode == 0, errors(finished)
    assert finished.stdout.count("validation") == 2 * len(jobs)

    alone, alone_metrics = project.adapter(3, "alone-fp32"), project.metrics("alone-fp32")
    moved = max(tensor.abs().max().item() for name, tensor in alone.items() if "lora_B" in name)
    assert moved > 1e-2
    for run in meshes:
        project.assert_trained_alike(3, f"{run}-fp32", "alone-fp32")
        # Same figures, the validation of three samples on two ranks among them, and one writer.
        metrics = project.metrics(f"{run}-fp32")
        assert [line["step"] for line in metrics] == [1, 2, 3]
        names = ("loss/total", "loss/audio", "loss/text", "grad_norm", "loss/audio_codebook_7", "learning_rate")
        for line, expected in zip(metrics, alone_metrics, strict=True):
            for figure in names:
                assert line[figure] == pytest.approx(expected[figure], rel=1e-5), (run, figure)
        last, expected = metrics[-1]["validation/audio_loss"], alone_metrics[-1]["validation/audio_loss"]
        assert last == pytest.approx(expected, rel=1e-5), run

    for run in meshes:
        assert {tensor.dtype for tensor in project.adapter(3, f"{run}-bf16").values()} == {torch.float32}
        for line, expected in zip(project.metrics(f"{run}-bf16"), project.metrics("alone-bf16"), strict=True):
            assert line["loss/total"] == pytest.approx(expected["loss/total"], abs=0.02), run


def _folders(run: str) -> dict[str, str]:
    return {"run": run, "checkpoints": f"{run}/checkpoints"}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_ranks(project: Project) -> None:
    job = project.job(
        mesh=MeshJob(replicate=2, shard=1),
        batch=BatchJob(global_samples=4, micro_samples=2, accumulation=1),
        optimizer=project.job().optimizer.model_copy(update={"learning_rate": 1e30, "decay": "constant"}),
    )
    finished = train(project, 2, job)
    assert finished.returncode != 0
    assert "not finite at step 3 of 3, and there is no checkpoint to go back to" in finished.stderr
    assert not (project.root / "run" / "checkpoints").exists()


def test_clipping_reports_the_norm_before() -> None:
    mesh = Mesh.single(torch.device("cpu"))
    parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("a.weight", "b.weight")}
    for parameter, value in zip(parameters.values(), (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    assert mesh.clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters.values() if p.grad is not None] == pytest.approx([0.6, 0.8], rel=1e-5)
    parameters["a.weight"].grad = torch.tensor([float("nan")])
    assert not mesh.clip_gradients(parameters, 1.0).isfinite()
