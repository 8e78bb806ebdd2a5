"""An adapter that was trained with a Whisper: heard where it speaks, refused where it cannot be heard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("soundfile")

from click.testing import CliRunner  # noqa: E402

from higgsc.cli import group  # noqa: E402
from higgsc.contract.jobs import SelectJob, StepContext, WhisperRef  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.store import Store  # noqa: E402
from higgsc.deploy.evaluate import step as evaluate  # noqa: E402
from higgsc.deploy.generate import Speaker, Speech  # noqa: E402
from higgsc.deploy.inspect.check import check_adapter, check_checkpoint  # noqa: E402
from higgsc.deploy.inspect.compare import compare  # noqa: E402
from higgsc.deploy.inspect.convert import convert_adapter  # noqa: E402
from higgsc.deploy.inspect.find import find_adapters  # noqa: E402
from higgsc.deploy.merge import step as merge  # noqa: E402
from higgsc.deploy.merge.fold import merge_adapter  # noqa: E402
from higgsc.train.decoder.heard import listening, projector_of  # noqa: E402
from higgsc.train.decoder.layer import decode, install  # noqa: E402
from higgsc.train.model.adapter import PROJECTOR_FILE  # noqa: E402
from higgsc.train.model.build import adapter_parameters  # noqa: E402
from higgsc.train.model.projector import add_projector  # noqa: E402
from higgsc.train.rows.row import pack  # noqa: E402
from higgsc.train.rows.sequence import AudioTokens, build_sequence  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402
from tests.deploy.small_run import CLIPS, TINY, evaluate_job, lora, merge_job, save  # noqa: E402
from tests.train.conftest import Project, make_project  # noqa: E402
from tests.train.test_whisper import job  # noqa: E402
from tests.whisper import load, make_whisper, some_listener  # noqa: E402


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> WhisperRef:
    return make_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


def adapter(root: Path, ref: WhisperRef, *, std: float, step: int = 1) -> Path:
    """A checkpoint whose low-rank part does nothing, so that what changes is what is heard; its adapter's folder."""
    model = lora(rank=2)
    projector = add_projector(model.get_base_model(), load(ref).listener)
    torch.manual_seed(1)
    with torch.no_grad():
        projector.weight.normal_(std=std)
    return save(root, model, step, 5.0, TINY.model_copy(update={"whisper": ref})) / "adapter"


def say(speaker: Speaker, seconds: float = 1.0) -> Speech:
    voice = speaker.voice(read_mono(CLIPS / "huda-01.flac", max_seconds=30)[: round(24_000 * seconds)], "hello there")
    return speaker.speak(voice, "good bye", sampling=Sampling(temperature=0), max_seconds=0.6)


def speaker(folder: Path | None) -> Speaker:
    return Speaker.load("builtin:tiny", "builtin:tiny", adapter=folder, dtype=torch.float32)


def test_what_is_heard_is_spoken_with(tmp_path: Path, ref: WhisperRef) -> None:
    """At zero it speaks as its base does; any other projector says something else."""
    base = say(speaker(None))
    assert np.array_equal(say(speaker(adapter(tmp_path, ref, std=0.0))).codes, base.codes)
    listens = speaker(adapter(tmp_path, ref, std=0.5))
    spoken = say(listens)
    assert not np.array_equal(spoken.codes, base.codes)
    assert np.array_equal(say(listens).codes, spoken.codes)
    # Longer than Whisper's window: heard in windows, not refused and not cut off.
    assert len(say(listens, seconds=2.5).codes) > 0


def test_training_and_speaking_hear_the_same(tmp_path: Path, ref: WhisperRef, write_store: Callable[..., Path]) -> None:
    """What follows the prompt is predicted alike by the packed row's forward pass and by transformers' own."""
    store = Store.open(write_store(held_out=1, listener=load(ref)))
    sample, made = store.sample(0), speaker(adapter(tmp_path, ref, std=0.5))
    model, prompt = made._model, made.prompt(sample.prefix, sample.reference, sample.middle)
    with torch.no_grad():
        deaf = model(**prompt).logits[0, -1]
        with listening(model.model, sample.heard, prefix=len(sample.prefix)):
            spoken = model(**prompt).logits[0, -1]
        again = model(**prompt).logits[0, -1]
        row = pack([build_sequence(sample, AudioTokens.of(model.config))])
        install(model.model)
        ids = row.input_ids, row.position_ids, row.audio_input_ids
        hidden = decode(model.model, *ids, row.routes, heard=row.heard)
        trained = model.audio_lm_head(hidden[prompt["input_ids"].shape[1] - 1])
    assert torch.equal(deaf, again), "nothing is left behind"
    assert (spoken - deaf).abs().max() > 0.1
    torch.testing.assert_close(trained, spoken.flatten(), rtol=1e-4, atol=1e-4)


def test_without_its_whisper_it_does_not_speak(tmp_path: Path, ref: WhisperRef) -> None:
    moved = ref.model_copy(update={"encoder": str(tmp_path / "whisper")})
    shutil.copytree(ref.encoder, moved.encoder)
    folder = adapter(tmp_path, moved, std=0.5)
    made = speaker(folder)
    ids = np.arange(9)
    with pytest.raises(StepError, match="nothing of the reference was heard") as caught:
        made.respond(ids, np.zeros((2, 8), np.uint16), ids, seed=0, sampling=Sampling(), max_seconds=1)
    assert caught.value.code == ExitCode.USAGE
    shutil.rmtree(moved.encoder)
    make_whisper(Path(moved.encoder), seed=9)
    with pytest.raises(StepError, match=r"was trained with the Whisper .* is now has the fingerprint"):
        speaker(folder)
    shutil.rmtree(moved.encoder)
    with pytest.raises(StepError, match="cannot load") as gone:
        speaker(folder)
    assert gone.value.code == ExitCode.MISSING_INPUT
    (folder / PROJECTOR_FILE).unlink()
    with pytest.raises(StepError, match="its projector is missing"):
        speaker(folder)


@pytest.mark.filterwarnings("default")
def test_plain_peft_says_that_it_leaves_it_out(tmp_path: Path, ref: WhisperRef) -> None:
    folder = adapter(tmp_path, ref, std=0.5)
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['whisper'\]"):
        peft.PeftConfig.from_pretrained(folder)


@pytest.mark.slow
class TestEvaluation:
    """Base beside an adapter that listens."""

    def job(self) -> Any:
        chosen = SelectJob(checkpoints="runs/t/checkpoints", select="best", best="validation/audio_loss")
        return evaluate_job(merged=None, trained=chosen, samples=1)

    def test_it_listens_and_the_base_does_not(
        self, tmp_path: Path, ref: WhisperRef, context: StepContext, write_store: Callable[..., Path]
    ) -> None:
        write_store(held_out=1, listener=load(ref))
        found = []
        for std in (0.0, 0.5):
            adapter(tmp_path, ref, std=std)
            found.append(evaluate.run(self.job(), context).figures)
        assert found[0]["adapter/audio_loss"] == found[0]["base/audio_loss"] == found[1]["base/audio_loss"]
        assert found[1]["adapter/audio_loss"] != pytest.approx(found[0]["adapter/audio_loss"], abs=1e-3)

    def test_a_store_that_it_cannot_hear_is_refused(
        self, tmp_path: Path, ref: WhisperRef, context: StepContext, write_store: Callable[..., Path]
    ) -> None:
        adapter(tmp_path, ref, std=0.5)
        write_store(held_out=1)
        with pytest.raises(StepError, match="but no Whisper has listened to the references of the store"):
            evaluate.run(self.job(), context)
        write_store(held_out=1, listener=load(make_whisper(tmp_path / "other", seed=4)))
        with pytest.raises(StepError, match=r"but `.*other` \(.*\) has listened to the references of the store"):
            evaluate.run(self.job(), context)


class TestRefused:
    """What has no place for what is heard says so."""

    REASON = "which no merged model has"

    def test_the_merge_step(self, tmp_path: Path, ref: WhisperRef, context: StepContext) -> None:
        adapter(tmp_path, ref, std=0.0)
        with pytest.raises(StepError, match=self.REASON) as caught:
            merge.run(merge_job(), context)
        assert "higgsc generate --adapter" in str(caught.value.help)
        assert not (tmp_path / "runs/t/merged").exists()

    @pytest.mark.parametrize("quantize", [None, "int8"])
    def test_a_merge_by_hand(self, tmp_path: Path, ref: WhisperRef, quantize: Any) -> None:
        pytest.importorskip("torchao")
        folder = adapter(tmp_path, ref, std=0.0)
        with pytest.raises(StepError, match=self.REASON):
            merge_adapter("builtin:tiny", folder, tmp_path / "out", dtype="fp32", quantize=quantize)

    def test_the_command(self, tmp_path: Path, ref: WhisperRef) -> None:
        folder = adapter(tmp_path, ref, std=0.0)
        result = CliRunner().invoke(group, ["merge", str(folder), "-o", str(tmp_path / "out")])
        assert isinstance(result.exception, StepError)
        assert result.exception.code == ExitCode.BAD_DATA
        assert self.REASON in result.exception.message

    def test_a_conversion_and_a_search(self, tmp_path: Path, ref: WhisperRef) -> None:
        folder = adapter(tmp_path, ref, std=0.0)
        with pytest.raises(StepError, match=self.REASON):
            convert_adapter(folder, tmp_path / "out")
        (found,) = find_adapters(tmp_path / "runs").adapters
        assert found.refusal is not None
        assert self.REASON in found.refusal.message


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("project"), some_listener())
    for run, steps in (("one", 2), ("two", 1)):
        project.train(job(project, steps, run=run, checkpoints=f"{run}/checkpoints"))
    return project


class TestLooking:
    """`higgsc checkpoint validate` and `compare` know the file beside the adapter."""

    def checkpoint(self, project: Project, tmp_path: Path) -> Path:
        return Path(shutil.copytree(project.root / "one/checkpoints/step-2", tmp_path / "step-2"))

    def test_a_whole_one(self, project: Project, tmp_path: Path) -> None:
        report = check_checkpoint(self.checkpoint(project, tmp_path))
        assert not report.problems, [problem.message for problem in report.problems]
        one, two = project.root / "one/checkpoints/step-2", project.root / "two/checkpoints/step-1"
        assert report.tensors == 3 * (len(project.adapter(2, "one")) + 1)
        distance = compare(one, two).distance
        assert distance is not None
        assert distance.whole["model.whisper.weight"].difference > 0
        assert not any("Whisper" in note for note in distance.notes)

    def test_one_without_its_projector(self, project: Project, tmp_path: Path) -> None:
        folder = self.checkpoint(project, tmp_path)
        (folder / "adapter" / PROJECTOR_FILE).unlink()
        (problem, *_) = check_checkpoint(folder).problems
        assert problem.path == folder / "adapter" / PROJECTOR_FILE
        assert "this file is missing" in problem.message
        (problem,) = check_adapter(folder / "adapter").problems
        assert "its projector is missing" in problem.message

    def test_one_whose_projector_is_not_finite(self, project: Project, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = self.checkpoint(project, tmp_path)
        file = folder / "adapter" / PROJECTOR_FILE
        weights = load_file(file)
        next(iter(weights.values()))[0, 0] = torch.nan
        save_file(weights, file)
        told = [problem.message for problem in check_checkpoint(folder).problems]
        assert any("whisper.weight' holds values that are not finite" in message for message in told)

    def test_beside_one_that_does_not_listen(self, project: Project, tmp_path: Path) -> None:
        project.train(job(project, 1, run="plain", checkpoints="plain/checkpoints", model=TINY))
        distance = compare(project.root / "one/checkpoints/step-2", project.root / "plain/checkpoints/step-1").distance
        assert distance is not None
        assert any("not compared, what they make of what a Whisper hears: the first with" in n for n in distance.notes)


def test_what_is_trained_is_what_is_saved(ref: WhisperRef) -> None:
    model = lora(rank=2)
    add_projector(model.get_base_model(), load(ref).listener)
    assert "base_model.model.model.whisper.weight" in adapter_parameters(model)
    assert projector_of(model.get_base_model().model) is not None
