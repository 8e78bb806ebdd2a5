"""The train step, in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from higgsc.contract.heartbeat import read_heartbeat
from higgsc.contract.jobs import BatchJob, CheckpointJob, LossJob, MeshJob, OptimizerJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.store import Store
from higgsc.train.checkpoints.checkpoint import list_checkpoints
from higgsc.train.model.build import load_base
from higgsc.train.objective.loss import LossModule
from higgsc.train.objective.validate import validation_losses
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.plan import plan_of
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import Project

CPU = torch.device("cpu")


def optimizer(project: Project, **changes: object) -> OptimizerJob:
    return project.job().optimizer.model_copy(update=changes)


def test_what_a_training_leaves(project: Project) -> None:
    job = project.job(
        optimizer=optimizer(project, steps=5), checkpoint=CheckpointJob(every_steps=2, keep_last=3), log_every_steps=2
    )
    result = project.train(job)
    assert [path.name for path in result.outputs] == ["checkpoints", "metrics.jsonl"]
    assert all(path.exists() for path in (*result.inputs, *result.outputs))

    checkpoints = list_checkpoints(project.root / "run" / "checkpoints")
    assert [c.step for c in checkpoints] == [2, 4, 5]
    assert all({"loss/audio", "validation/audio_loss", "validation/text_loss"} <= c.metrics.keys() for c in checkpoints)
    assert result.figures["validation/audio_loss"] == checkpoints[-1].metrics["validation/audio_loss"]
    assert result.figures["steps"] == 5

    lines = project.metrics()
    assert [line["step"] for line in lines] == [2, 4, 5]
    names = {"loss/total", "loss/text", "loss/audio", "learning_rate", "grad_norm", "tokens_per_second"}
    names |= {"samples_per_second", "epoch", *(f"loss/audio_codebook_{k}" for k in range(8))}
    assert all(names <= line.keys() for line in lines)
    assert lines[-1]["epoch"] == pytest.approx(5 * 4 / 7)
    assert lines[0]["loss/audio"] == pytest.approx(
        np.mean([lines[0][f"loss/audio_codebook_{k}"] for k in range(8)]), rel=1e-6
    )
    assert lines[0]["loss/audio"] == pytest.approx(np.log(1026), abs=3)
    assert lines[-1]["loss/total"] < lines[0]["loss/total"]

    heartbeat = read_heartbeat(project.root / "run")
    assert heartbeat is not None
    assert (heartbeat.done, heartbeat.total, heartbeat.unit) == (5, 5, "steps")
    assert list((project.root / "run" / "tensorboard").iterdir())


def test_the_same_job_gives_the_same_adapter(project: Project) -> None:
    project.train(project.job())
    first = project.adapter(3)
    project.forget()
    project.train(project.job())
    again = project.adapter(3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    project.forget()
    project.train(project.job(seed=2))
    assert any(not torch.equal(first[name], tensor) for name, tensor in project.adapter(3).items())


def test_accumulation_changes_nothing(project: Project) -> None:
    """Samples of different lengths: a mean of micro-batch means would differ."""
    project.train(project.job())
    whole = project.adapter(3)
    project.forget()
    project.train(project.job(batch=BatchJob(global_samples=4, micro_samples=1, accumulation=4)))
    for name, tensor in project.adapter(3).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-4)  # AdamW shows the rounding of tiny gradients


def test_the_loss_of_the_first_step_is_that_of_the_base(project: Project) -> None:
    project.train(project.job(loss=LossJob(text=0.5, audio=2.0)))
    line = project.metrics()[0]
    store = Store.open(project.root / "store")
    base = load_base(project.job().model, root=project.root, dtype=torch.float32, device=CPU)
    module, tokens = LossModule(base), AudioTokens.of(base.config)
    batch = plan_of(project.job(), store).global_batch(0)
    with torch.no_grad():
        sums = [module(pack([build_sequence(store.sample(int(i)), tokens)])) for i in batch]
    codes = sum(8 * (int(store.target_frames[i]) + 1) for i in batch)
    audio = sum(s.audio.sum().item() for s in sums) / codes
    text = sum(s.text.item() for s in sums) / (3 * len(batch))
    assert line["loss/audio"] == pytest.approx(audio, rel=1e-5)
    assert line["loss/text"] == pytest.approx(text, rel=1e-5)
    assert line["loss/total"] == pytest.approx(2.0 * audio + 0.5 * text, rel=1e-5)


def test_figures_name_every_part_and_the_weighted_total(project: Project) -> None:
    codebooks = (4.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    project.train(project.job(loss=LossJob(text=0.5, audio=2.0, codebooks=codebooks), log_every_steps=3))
    (line,) = project.metrics()
    for total, text, codebook in (
        ("loss/total", "loss/text", "loss/audio_codebook_{}"),
        ("validation/total_loss", "validation/text_loss", "validation/audio_codebook_{}"),
    ):
        losses = [line[codebook.format(k)] for k in range(8)]
        audio = np.average(losses, weights=codebooks)
        assert line[total] == pytest.approx(2.0 * audio + 0.5 * line[text], rel=1e-5)
    assert line["validation/audio_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_validation_is_the_mean_over_labels(project: Project) -> None:
    store = Store.open(project.root / "store")
    base = load_base(project.job().model, root=project.root, dtype=torch.float32, device=CPU)
    module = LossModule(base)
    apart = validation_losses(module, store, np.split(store.validation, 3), mesh=Mesh.single(CPU))
    packed = validation_losses(module, store, np.split(store.validation, [2]), mesh=Mesh.single(CPU))
    assert packed.audio == pytest.approx(apart.audio, rel=1e-6)
    assert packed.text == pytest.approx(apart.text, rel=1e-6)
    assert np.mean(packed.audio_codebooks) == pytest.approx(packed.audio)
    assert packed.audio == pytest.approx(np.log(1026), abs=3)


@pytest.mark.parametrize("every_steps, saved", [(1, [1, 2, 3, 4, 5]), (6, [])])
def test_an_adapter_that_is_broken_in_its_first_step(project: Project, every_steps: int, saved: list[int]) -> None:
    """Its numbers are finite, but no gradient is from there on; no checkpoint is from before."""
    job = project.job(
        optimizer=optimizer(project, learning_rate=1e30, decay="constant", steps=6),
        checkpoint=CheckpointJob(every_steps=every_steps, keep_last=9),
        log_every_steps=every_steps,
    )
    with pytest.raises(StepError, match="not finite at step 6 of 6, and there is no checkpoint to go back to"):
        project.train(job)
    # A skipped step changes nothing, so what is saved after it is what the first step left.
    assert [c.step for c in list_checkpoints(project.root / "run" / "checkpoints")] == saved
    for step in saved:
        for name, tensor in project.adapter(step).items():
            assert torch.equal(tensor, project.adapter(1)[name])


def test_a_validation_that_is_not_finite_is_not_saved(project: Project) -> None:
    """The one step's loss is finite; its update makes queries and keys too large for their product."""
    lora = project.job().lora.model_copy(
        update={
            "targets": ("q_proj", "k_proj"),
            "module_count": 8,
            "trainable_parameters": 4 * 4 * (128 + 128 + 128 + 64),
        }
    )
    with pytest.raises(StepError, match="the validation loss is not finite at step 1 of 1"):
        project.train(
            project.job(lora=lora, optimizer=optimizer(project, learning_rate=1e30, decay="constant", steps=1))
        )
    assert list_checkpoints(project.root / "run" / "checkpoints") == []


def test_bf16_keeps_the_adapter_in_float32(project: Project) -> None:
    project.train(project.job(precision="bf16"))
    assert {tensor.dtype for tensor in project.adapter(3).values()} == {torch.float32}
    rough = project.metrics()
    project.forget()
    project.train(project.job())
    exact = project.metrics()
    for a, b in zip(rough, exact, strict=True):
        assert a["loss/audio"] == pytest.approx(b["loss/audio"], abs=0.05)


def test_too_few_processes(project: Project) -> None:
    with pytest.raises(StepError, match=r"replicate\(2\) \* shard\(1\) = 2 != 1 process") as caught:
        project.train(
            project.job(
                mesh=MeshJob(replicate=2, shard=1), batch=BatchJob(global_samples=8, micro_samples=4, accumulation=1)
            )
        )
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(project: Project) -> None:
    with pytest.raises(StepError, match="torch sees none on this machine") as caught:
        project.train(project.job(device="cuda"))
    assert caught.value.code == ExitCode.MISSING_INPUT


def test_no_store(project: Project) -> None:
    with pytest.raises(StepError, match="no store"):
        project.train(project.job(store="elsewhere"))


def test_a_store_for_another_base_is_refused(project: Project) -> None:
    model = project.job().model.model_copy(update={"revision": "0ff4877"})
    with pytest.raises(StepError, match="prepared for the base `builtin:tiny` at revision None, but the job trains"):
        project.train(project.job(model=model))
