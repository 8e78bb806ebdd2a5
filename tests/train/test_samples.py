"""Speech at checkpoints: heard, and without a trace in the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from higgsc.contract.jobs import BatchJob, CheckpointJob, MeshJob, SamplesJob, TrainJob
from higgsc.contract.outcome import Interrupted
from higgsc.data.audio import write_wav
from higgsc.data.layout import ChatLayout
from higgsc.data.loading import load_codec
from higgsc.data.store import Store
from higgsc.deploy.generate import Speaker
from higgsc.train import training
from higgsc.train.model.build import load_base
from higgsc.train.report.tracking.tensorboard import TensorBoard
from higgsc.train.seeds import Purpose, torch_seed
from higgsc.train.speech.sampling import Sampling

from .conftest import Project
from .ranks import errors, train


def speaking(project: Project, count: int, *, temperature: float = 0.9, **changes: object) -> TrainJob:
    """Four steps with dropout, heard after two and four, at a rate that changes what is said."""
    job = project.job()
    samples = SamplesJob(count=count, prompts="held-out", temperature=temperature) if count else None
    parts = {
        "checkpoint": CheckpointJob(every_steps=2, keep_last=2, samples=samples),
        "optimizer": job.optimizer.model_copy(update={"steps": 4, "decay": "constant"}),
        "lora": job.lora.model_copy(update={"dropout": 0.2}),
    }
    return project.job(**(parts | changes))


def heard(project: Project, run: str = "run") -> dict[str, np.ndarray]:
    folder = project.root / run / "samples"
    return {path.relative_to(folder).as_posix(): soundfile.read(path)[0] for path in sorted(folder.rglob("*.wav"))}


def test_speech_leaves_no_trace_in_the_training(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.train(speaking(project, 0))
    expected, lines = project.adapter(4), [line["loss/total"] for line in project.metrics()]
    assert not heard(project)
    project.forget()
    # Stopped in the middle of the speech at step 2: votes before the loop, before each of three steps, then there.
    votes = iter([False] * 7 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(training, "asked_to_stop", lambda _: next(votes))
        assert isinstance(project.attempt(speaking(project, 2)), Interrupted)
    project.train(speaking(project, 2))
    assert all(torch.equal(expected[name], tensor) for name, tensor in project.adapter(4).items())
    assert [line["loss/total"] for line in project.metrics()] == lines
    waves = heard(project)
    assert list(waves) == [f"step-{step}/sample-{n}.wav" for step in (0, 2, 4) for n in (2, 5)]
    assert any(len(wave) for wave in waves.values())

    events = EventAccumulator(str(project.root / "run" / "tensorboard"))
    events.Reload()
    assert events.Tags()["audio"] == ["samples/sample-2", "samples/sample-5"]
    assert {event.step for event in events.Audio("samples/sample-2")} == {0, 2, 4}


def test_before_the_first_step_the_base_is_heard(project: Project) -> None:
    job = speaking(project, 1)
    project.train(job)
    base = load_base(job.model, root=Path.cwd(), dtype=torch.float32, device=torch.device("cpu"))
    speaker = Speaker(base, ChatLayout.load("builtin:tiny"), load_codec(job.model, root=Path.cwd(), device="cpu"))
    store = Store.open(project.root / "store")
    index = int(store.validation[0])
    sample = store.sample(index)
    speech = speaker.respond(
        sample.prefix,
        sample.reference,
        sample.middle,
        seed=torch_seed(job.seed, Purpose.SAMPLING, index),
        sampling=Sampling(temperature=0.9),
        max_seconds=2 * len(sample.target) / 25 + 2.01,  # a hundredth for the rounding
    )
    wave = heard(project)["step-0/sample-2.wav"]
    np.testing.assert_allclose(wave, speech.wave, atol=1e-3)  # 16 bits
    assert not np.array_equal(wave, heard(project)["step-4/sample-2.wav"])


@pytest.mark.slow
def test_two_processes_speak_as_one(project: Project) -> None:
    """Three prompts on two processes, so that one is repeated where they take turns."""
    optimizer = project.job().optimizer.model_copy(update={"steps": 2, "decay": "constant"})
    job = speaking(project, 3, temperature=0.0, lora=project.job().lora, optimizer=optimizer)
    project.train(job)
    alone = heard(project)
    meshes = {
        "replicate": MeshJob(replicate=2, shard=1),
        "shard": MeshJob(replicate=1, shard=2),
        "tensor": MeshJob(replicate=1, shard=1, tensor=2, sequence=True),
    }
    jobs = []
    for run, mesh in meshes.items():
        batch = BatchJob(global_samples=4, micro_samples=2, accumulation=2 // mesh.data_parallel)
        folders = {"run": run, "checkpoints": f"{run}/checkpoints"}
        jobs.append(job.model_copy(update={"mesh": mesh, "batch": batch, **folders}))
    # Not all in the same two processes: in one of many runs, one of them crashed in the last of three trainings.
    for some in (jobs[:2], jobs[2:]):
        finished = train(project, 2, *some)
        assert finished.returncode == 0, errors(finished)
    for run in meshes:
        together = heard(project, run)
        assert list(together) == list(alone)
        for name, wave in alone.items():
            assert np.array_equal(wave, together[name]), (run, name)
        project.assert_trained_alike(2, run)


def test_nothing_said_is_shown_as_nothing(tmp_path: Path) -> None:
    """A model that ends at once: an empty recording, and a caption that says so."""
    write_wav(tmp_path / "silent.wav", np.zeros(0, dtype=np.float32))
    board = TensorBoard(tmp_path, start=0)
    board.speech(1, "samples/a", tmp_path / "silent.wav", "a sentence (0.0 s)")
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["audio"] == []
    assert "samples/a/text_summary" in events.Tags()["tensors"]
