"""`lora: null`: every parameter is trained, through FSDP2 on every mesh, and a checkpoint is a model."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import HiggsAudioV2ForConditionalGeneration

from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.contract.jobs import BatchJob, CheckpointJob, MeshJob, TrainJob
from higgsc.contract.outcome import ExitCode, Interrupted, StepError
from higgsc.train.checkpoints import whole
from higgsc.train.checkpoints.checkpoint import read_checkpoint, verify_checkpoint
from higgsc.train.checkpoints.tensor_file import TensorFile
from higgsc.train.model.adapter import open_adapter

from .conftest import Project
from .ranks import errors, train
from .test_resume import stop_at_vote  # noqa: F401

SMALL_FILES = 2_000_000
"""Bytes of a file, so that the tiny model takes several."""


def job(project: Project, steps: int = 4, **changes: Any) -> TrainJob:
    optimizer = project.job().optimizer.model_copy(update={"learning_rate": 1e-3, "decay": "constant", "steps": steps})
    parts = {"lora": None, "optimizer": optimizer, "checkpoint": CheckpointJob(every_steps=2, keep_last=3)}
    return project.job(**(parts | changes))


def weights(folder: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(f"{kind}*.safetensors")):
        found |= load_file(path)
    return found


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "FILE_BYTES", SMALL_FILES)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_it_is_the_training_that_never_was(
    project: Project,
    stop_at_vote: Any,  # noqa: F811
    precision: str,
) -> None:
    """To the bit: weights, moments and figures; every weight of the model moves."""
    plain = job(project, precision=precision, batch=BatchJob(global_samples=4, micro_samples=2, accumulation=2))
    project.train(plain)
    last = project.root / "run" / "checkpoints" / "step-4"
    expected, moments = weights(last), weights(last, "optimizer")
    losses = [line["loss/total"].hex() for line in project.metrics()]
    assert sum(tensor.numel() for tensor in expected.values()) == TINY.parameter_count()
    assert {tensor.dtype for tensor in (expected | moments).values()} == {torch.float32}
    assert moments.keys() == {f"{moment}.{name}" for name in expected for moment in ("exp_avg", "exp_avg_sq")}
    project.forget()
    stop_at_vote(3)
    assert isinstance(project.attempt(plain), Interrupted)
    start = weights(next((project.root / "run" / "checkpoints").glob("step-*")))
    project.train(plain)
    again, moments_again = weights(last), weights(last, "optimizer")
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(moments_again[name], tensor) for name, tensor in moments.items())
    assert [line["loss/total"].hex() for line in project.metrics()] == losses
    assert all(not torch.equal(start[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("small_files")
def test_a_checkpoint_is_a_model_of_transformers(project: Project) -> None:
    project.train(job(project, steps=2, precision="bf16"))
    folder = project.root / "run" / "checkpoints" / "step-2"
    verify_checkpoint(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * TINY.parameter_count()
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{k:05}-of-{len(files):05}.safetensors" for k in range(1, len(files) + 1)]
    assert len(files) > 2
    alone = {name for name, tensor in weights(folder).items() if 4 * tensor.numel() > SMALL_FILES}
    for file in files:
        tensors = load_file(folder / file)
        assert len(tensors) == 1 or sum(4 * tensor.numel() for tensor in tensors.values()) <= SMALL_FILES
        assert alone.isdisjoint(tensors) or len(tensors) == 1
    model, info = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        folder, use_text_head=True, output_loading_info=True
    )
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    stored = weights(folder)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, stored[name].bfloat16()), name
    with pytest.raises(StepError, match="whole model, not an adapter") as refused:
        open_adapter(folder)
    assert refused.value.help is not None
    assert "higgsc generate --model" in refused.value.help


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_leaves_the_checkpoint_before(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = TensorFile.add, []

    def full(self: TensorFile, name: str, tensor: torch.Tensor) -> None:
        written.append(name)
        if len(written) > 250:  # in the second checkpoint, which has 183 tensors
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, tensor)

    monkeypatch.setattr(TensorFile, "add", full)
    with pytest.raises(StepError, match="No space left") as failed:
        project.train(job(project))
    assert failed.value.code == ExitCode.IO
    folder = project.root / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-2"]
    assert read_checkpoint(folder / "step-2").step == 2


def test_an_adapters_training_does_not_go_on_as_a_whole_models(project: Project) -> None:
    project.train(project.job())
    with pytest.raises(StepError, match=r"lora \(an adapter was trained, not the whole model\)"):
        project.train(job(project))


@pytest.mark.slow
def test_every_mesh_trains_what_one_process_trains(project: Project) -> None:
    """Each goes on from the checkpoint of the mesh before; one process does all the steps."""
    meshes = [MeshJob(replicate=2, shard=1), MeshJob(replicate=1, shard=2), MeshJob(replicate=2, shard=1)]
    checkpoint = CheckpointJob(every_steps=100, keep_last=10)
    project.train(job(project, steps=len(meshes), checkpoint=checkpoint))
    folder = project.root / "run" / "checkpoints" / f"step-{len(meshes)}"
    alone, moments, expected = weights(folder), weights(folder, "optimizer"), project.metrics()
    project.forget()
    batch = BatchJob(global_samples=4, micro_samples=1, accumulation=2)
    jobs = [
        job(
            project,
            number,
            checkpoint=checkpoint,
            mesh=mesh,
            batch=batch,
        )
        for number, mesh in enumerate(meshes, start=1)
    ]
    finished = train(project, 2, *jobs)
    assert finished.returncode == 0, errors(finished)
    together, moments_together = weights(folder), weights(folder, "optimizer")
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        # AdamW divides a gradient by its size, so the rounding of one that is nearly zero shows in the weight.
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        first = f"exp_avg.{name}"
        largest = float(moments[first].abs().max())
        torch.testing.assert_close(moments_together[first], moments[first], rtol=0, atol=1e-4 * largest)
    for line, other in zip(project.metrics(), expected, strict=True):
        for figure in ("loss/total", "grad_norm", "loss/audio_codebook_7"):
            assert line[figure] == pytest.approx(other[figure], rel=1e-4), figure
