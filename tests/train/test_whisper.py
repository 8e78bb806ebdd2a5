"""Training with what a Whisper heard: a no-op at the start, learned, saved beside the adapter, gone on with exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from higgsc.contract.jobs import BatchJob, CheckpointJob, MeshJob, ModelRef, SamplesJob, TrainJob
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train.decoder.heard import projector_of
from higgsc.train.model.adapter import PROJECTOR, PROJECTOR_FILE, open_adapter
from higgsc.train.model.adapter_config import CONFIG_FILE
from higgsc.train.model.projector import add_projector
from higgsc.train.objective.loss import LossModule
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence
from higgsc.train.rows.shared import shared_beginnings
from tests.whisper import WIDTH, some_features, some_listener

from .conftest import Project, make_project
from .ranks import errors, train
from .test_resume import CLOCK, stop_at_vote  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture
def listening(tmp_path: Path) -> Project:
    """A project whose store has features."""
    return make_project(tmp_path, some_listener())


def model_ref(**changes: Any) -> ModelRef:
    whisper = some_listener().ref.model_copy(update=changes)
    return ModelRef(
        base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None,
        whisper=whisper,
    )  # fmt: skip


def job(project: Project, steps: int = 3, **changes: Any) -> TrainJob:
    optimizer = project.job().optimizer.model_copy(update={"steps": steps, "decay": "constant"})
    return project.job(**({"model": model_ref(), "optimizer": optimizer} | changes))


def adapter_folder(project: Project, step: int, run: str = "run") -> Path:
    return project.root / run / "checkpoints" / f"step-{step}" / "adapter"


def projector(project: Project, step: int, run: str = "run") -> torch.Tensor:
    weight: torch.Tensor = load_file(adapter_folder(project, step, run) / PROJECTOR_FILE)[PROJECTOR]
    return weight


def many(path: Path) -> Store:
    """Six samples, of which two and three begin alike."""
    random = np.random.default_rng(3)
    with StoreWriter(path, made_by={}, listener=some_listener()) as store:
        for number, group in enumerate((0, 1, 0, 2, 1, 1)):
            if number == group or number == 3:
                codes = random.integers(0, 1024, (3 + group, 8)).astype(np.uint16)
                same = [store.add_clip(codes, audio=bytes(32), heard=some_features(group, len(codes)))]
                prefixes = {} if number == 0 else prefixes  # noqa: F821
                prefixes[group] = (same[0], random.integers(2, 50, 4 + group))
            clip, prefix = prefixes[group]
            target = store.add_clip(random.integers(0, 1024, (4 + number, 8)).astype(np.uint16), audio=bytes(32))
            middle = np.r_[54, 50, random.integers(2, 50, 6), 52]
            store.add_sample(
                Segments(prefix=prefix, middle=middle, suffix=np.array([54, 50])),
                reference=clip, target=target, speaker="a", validation=False, record={"id": str(number)},
            )  # fmt: skip
    return Store.open(path)


def random_projector(model: Any, seed: int = 5) -> None:
    with torch.no_grad():
        add_projector(model, some_listener()).weight.normal_(generator=torch.Generator().manual_seed(seed))


def test_each_vector_is_at_the_row_that_says_its_frames_first_code(tmp_path: Path, tokens: AudioTokens) -> None:
    """Found by the codes themselves, in rows that share and in rows that do not, and in those of single sequences."""
    store, indices = many(tmp_path / "store"), np.array([0, 2, 1, 4, 5, 3])
    shared = shared_beginnings(store, np.arange(6))
    assert shared is not None
    alone = assemble(store, indices, tokens, heard=True).to(CPU)
    single = pack([build_sequence(store.sample(int(index)), tokens) for index in indices])
    together = assemble(store, indices, tokens, shared, heard=True).to(CPU)
    for row, owners in ((alone, indices), (single, indices), (together, [0, 1, 3])):
        assert row.heard is not None
        audio = torch.zeros(row.tokens, 8, dtype=torch.int64)
        audio[row.routes.audio] = row.audio_input_ids[0]
        references = [store.sample(int(index)) for index in owners]
        codes = np.concatenate([one.reference[:, 0] for one in references])
        assert np.array_equal(audio[row.heard.places, 0].numpy(), codes)
        bits = np.concatenate([one.heard for one in references if one.heard is not None])
        assert np.array_equal(row.heard.features.view(torch.int16).numpy().view(np.uint16), bits)
    assert assemble(store, indices, tokens).heard is None


def test_with_a_projector_of_zeros_nothing_is_another_number(model: Any, tokens: AudioTokens, tmp_path: Path) -> None:
    store = many(tmp_path / "store")
    row = assemble(store, np.arange(6), tokens, heard=True).to(CPU)
    without = LossModule(model)(row)
    add_projector(model, some_listener())
    sums = LossModule(model)(row)
    assert torch.equal(sums.audio, without.audio)
    assert torch.equal(sums.text, without.text)
    (sums.audio.sum() + sums.text).backward()
    gradient = model.model.whisper.weight.grad
    assert gradient.abs().max() > 0
    random_projector(model)
    assert not torch.equal(LossModule(model)(row).audio, without.audio)
    with pytest.raises(AssertionError, match="has heard every row"):
        LossModule(model)(assemble(store, np.arange(6), tokens).to(CPU))


def test_samples_that_share_a_reference_hear_it_too(model: Any, tokens: AudioTokens, tmp_path: Path) -> None:
    """Losses and the projector's gradient of shared rows are those of rows apart."""
    store, indices = many(tmp_path / "store"), np.array([0, 2, 1, 4, 5, 3])
    random_projector(model)
    module, found = LossModule(model), []
    for shared in (None, shared_beginnings(store, np.arange(6))):
        model.zero_grad()
        sums = module(assemble(store, indices, tokens, shared, heard=True).to(CPU))
        (sums.audio.sum() + sums.text).backward()
        found.append((sums.audio.detach(), model.model.whisper.weight.grad.clone()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


def test_it_is_learned_and_saved_beside_the_adapter(listening: Project) -> None:
    project = listening
    # The first loss is that of the model without; the ones after are not, for what is heard has begun to count.
    project.train(job(project))
    first = [line["loss/total"] for line in project.metrics()]
    assert open_adapter(adapter_folder(project, 3)).listener == some_listener()
    weight = projector(project, 3)
    assert (weight.dtype, tuple(weight.shape)) == (torch.float32, (128, WIDTH))
    assert weight.abs().max() > 1e-3
    assert json.loads((adapter_folder(project, 3) / CONFIG_FILE).read_text())["whisper"]["width"] == WIDTH
    manifest = json.loads((adapter_folder(project, 3).parent / "manifest.json").read_text())
    assert f"adapter/{PROJECTOR_FILE}" in manifest["files"]
    project.forget()
    project.train(job(project, model=project.job().model))
    plain = [line["loss/total"] for line in project.metrics()]
    assert plain[0] == first[0]
    assert plain[1] != first[1]
    assert not (adapter_folder(project, 3) / PROJECTOR_FILE).exists(), "nobody listens if the job names none"


@pytest.mark.parametrize("keep", ["none", "selective", "full"])
def test_whatever_is_kept_for_the_backward_pass(listening: Project, keep: str) -> None:
    """The same projector to the bit, in bfloat16 too."""
    jobs = {"none": "one", keep: "other"}
    for mode, run in jobs.items():
        parts = {"run": run, "checkpoints": f"{run}/checkpoints", "precision": "bf16"}
        listening.train(job(listening, 2, activation_checkpointing=mode, **parts))
    runs = [projector(listening, 2, run) for run in jobs.values()]
    assert torch.equal(runs[0], runs[-1])
    assert runs[0].abs().max() > 1e-3


@pytest.mark.slow
def test_interrupted_it_is_the_training_that_never_was(listening: Project, stop_at_vote: Any) -> None:  # noqa: F811
    project = listening
    samples = SamplesJob(count=1, prompts="held-out", temperature=0.0)
    plain = job(
        project, 4,
        batch=BatchJob(global_samples=4, micro_samples=2, accumulation=2),
        checkpoint=CheckpointJob(every_steps=3, keep_last=3, samples=samples),
    )  # fmt: skip

    def left() -> tuple[Any, ...]:
        lines = [{n: float(v).hex() for n, v in line.items() if n not in CLOCK} for line in project.metrics()]
        folder = adapter_folder(project, 4).parent
        files = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
        assert files.keys() == {"adapter_model.safetensors", PROJECTOR_FILE, "optimizer.safetensors"}
        return lines, files

    project.train(plain)
    expected = left()
    spoken = (project.root / "run/samples/step-4/sample-2.wav").read_bytes()
    project.forget()
    stop_at_vote(2)
    assert isinstance(project.attempt(plain), Interrupted)
    project.train(plain)
    assert left() == expected
    assert (project.root / "run/samples/step-4/sample-2.wav").read_bytes() == spoken


@pytest.mark.slow
def test_two_ranks_train_and_speak_as_one(listening: Project) -> None:
    """Sharded, where the projector is gathered to speak with; and in a tensor group that divides the sequence."""
    project = listening
    samples = CheckpointJob(every_steps=2, keep_last=2, samples=SamplesJob(count=1, prompts="held-out", temperature=0))
    plain = job(project, 2, checkpoint=samples)
    project.train(plain)
    meshes = {
        "shard": MeshJob(replicate=1, shard=2),
        "tensor": MeshJob(replicate=1, shard=1, tensor=2, sequence=True),
    }
    jobs = [
        plain.model_copy(
            update={
                "mesh": mesh,
                "batch": BatchJob(global_samples=4, micro_samples=2, accumulation=2 // mesh.data_parallel),
                "run": run,
                "checkpoints": f"{run}/checkpoints",
            }
        )
        for run, mesh in meshes.items()
    ]
    finished = train(project, 2, *jobs)
    assert finished.returncode == 0, errors(finished)
    alone = projector(project, 2)
    assert alone.abs().max() > 1e-2
    for run in meshes:
        # AdamW divides a gradient by its size, so the rounding of one that is nearly zero shows.
        torch.testing.assert_close(projector(project, 2, run), alone, rtol=0, atol=3e-4)
        for line, expected in zip(project.metrics(run), project.metrics(), strict=True):
            assert line["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-5)
        assert line["validation/audio_loss"] == pytest.approx(expected["validation/audio_loss"], rel=1e-5)
        name = "samples/step-2/sample-2.wav"
        assert (project.root / run / name).read_bytes() == (project.root / "run" / name).read_bytes()


def test_a_store_that_nobody_listened_to_is_refused(project: Project) -> None:
    with pytest.raises(StepError, match="the store holds nothing that a Whisper has heard") as caught:
        project.train(job(project))
    assert caught.value.path == project.root / "store/store.json"
    assert "run the prepare step again" in str(caught.value.help)


def test_a_store_of_another_whisper_is_refused(listening: Project) -> None:
    with pytest.raises(StepError, match=r"`whisper` .* listened to .* but the job trains with `other` at revision abc"):
        listening.train(job(listening, model=model_ref(encoder="other", revision="abc")))


def test_another_whisper_breaks_a_resume(listening: Project) -> None:
    listening.train(job(listening, 1))
    with pytest.raises(StepError, match=r"model\.whisper"):
        listening.train(job(listening, 2, model=listening.job().model))


class TestStart:
    """Starting from an adapter that is there."""

    def start(self, project: Project, folder: Path, **changes: Any) -> None:
        lora = project.job().lora
        assert lora is not None
        parts = {"run": "next", "checkpoints": "next/checkpoints"}
        named = lora.model_copy(update={"start": str(folder.relative_to(project.root))})
        zero = project.job().optimizer.model_copy(update={"steps": 1, "learning_rate": 1e-12})
        project.train(project.job(**(parts | {"model": model_ref(), "lora": named, "optimizer": zero} | changes)))

    def test_its_projector_comes_along(self, listening: Project) -> None:
        listening.train(job(listening))
        self.start(listening, adapter_folder(listening, 3))
        torch.testing.assert_close(projector(listening, 1, "next"), projector(listening, 3), rtol=0, atol=1e-9)

    def test_an_adapter_without_one_leaves_it_at_zero(self, listening: Project) -> None:
        listening.train(job(listening, model=listening.job().model))
        self.start(listening, adapter_folder(listening, 3))
        assert projector(listening, 1, "next").abs().max() < 1e-9

    def test_it_is_not_left_out_in_silence(self, listening: Project) -> None:
        listening.train(job(listening))
        with pytest.raises(StepError, match=r"trained with the Whisper `whisper` .* the training listens with none"):
            self.start(listening, adapter_folder(listening, 3), model=listening.job().model)


class TestReading:
    """An adapter is read with its projector, or not at all."""

    @pytest.fixture
    def folder(self, listening: Project) -> Path:
        listening.train(job(listening, 1))
        return adapter_folder(listening, 1)

    def test_without_its_projector_it_is_another_adapter(self, folder: Path) -> None:
        (folder / PROJECTOR_FILE).unlink()
        with pytest.raises(StepError, match=r"listens with the Whisper `whisper` .*, and its projector is missing"):
            open_adapter(folder)

    def test_a_projector_of_nobody_knows_whom(self, folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())
        del config["whisper"]
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        with pytest.raises(StepError, match="does not say which Whisper"):
            open_adapter(folder)
        (folder / CONFIG_FILE).write_text(json.dumps(config | {"whisper": {"encoder": 3}}))
        with pytest.raises(StepError, match="`whisper` does not say which Whisper it is"):
            open_adapter(folder)

    def test_a_projector_of_another_width(self, folder: Path) -> None:
        save_file({PROJECTOR: torch.zeros(128, 3)}, folder / PROJECTOR_FILE)
        with pytest.raises(StepError, match=r"should hold .* \[hidden size, 16\]"):
            open_adapter(folder)


def test_who_does_not_listen_has_no_projector(model: Any) -> None:
    assert projector_of(model.model) is None
