"""From a store and a checkpoint to a merged model and its evaluation, on the tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
soundfile = pytest.importorskip("soundfile")

from safetensors.torch import load_file  # noqa: E402

from higgsc.contract.heartbeat import read_heartbeat  # noqa: E402
from higgsc.contract.jobs import EvaluateJob, MergeJob, ModelRef, SelectJob, StepContext  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.codec import Codec  # noqa: E402
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout  # noqa: E402
from higgsc.data.store import Store, StoreWriter  # noqa: E402
from higgsc.deploy import evaluate  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.merge import step as merge  # noqa: E402
from higgsc.train.checkpoints.checkpoint import draft_checkpoint, save_checkpoint, write_tensors  # noqa: E402
from higgsc.train.checkpoints.progress import Progress  # noqa: E402
from higgsc.train.model.build import adapter_parameters, load_base  # noqa: E402
from higgsc.train.model.folder import base_folder, copy_companions  # noqa: E402
from higgsc.train.objective.loss import LossModule  # noqa: E402
from higgsc.train.objective.validate import validation_losses  # noqa: E402
from higgsc.train.parallel.mesh import Mesh  # noqa: E402
from higgsc.train.report.metrics import SavedMeter  # noqa: E402
from higgsc.train.report.speed import Window  # noqa: E402
from higgsc.train.rows.row import pack  # noqa: E402
from higgsc.train.rows.sequence import AudioTokens, build_sequence  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402

CLIPS = Path(__file__).parents[2] / "specs/data/quickstart/audio"
TINY = ModelRef(base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None)
COMMON: dict[str, Any] = {
    "higgsc": "0", "name": "t", "root": "..", "run": "runs/t", "seed": 1, "device": "cpu", "model": TINY,
}  # fmt: skip


@pytest.fixture(scope="module")
def codec() -> Codec:
    from higgsc.train.model.builtin import tiny_path

    return Codec.load(tiny_path("audio_tokenizer"))


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return StepContext(job_path=tmp_path / "jobs" / "j.json", root=tmp_path, rank=0, world_size=1)


@pytest.fixture
def write_store(tmp_path: Path, codec: Codec) -> Callable[..., Path]:
    """Four samples of real clips, the last `held_out` of them for validation."""

    def write(*, held_out: int, codec_name: str | None = None) -> Path:
        layout = ChatLayout.load("builtin:tiny")
        path = tmp_path / "runs/t/store"
        with StoreWriter(path, made_by={"codec": codec_name or codec.fingerprint}) as writer:
            for number in range(4):
                waves = [
                    read_mono(CLIPS / f"huda-0{number + n}.flac", max_seconds=30)[: 24_000 * seconds // 2]
                    for n, seconds in ((1, 2), (2, 1))
                ]
                reference, target = (writer.add_clip(codec.encode(wave), audio=bytes(32)) for wave in waves)
                texts = {"reference_text": f"reference {number}", "target_text": f"target {number}"}
                writer.add_sample(
                    layout.segments(system=DEFAULT_SYSTEM, scene=None, **texts),
                    reference=reference,
                    target=target,
                    speaker="huda",
                    validation=number >= 4 - held_out,
                    record={"id": f"set/a:{number}", **texts},
                )
        return path

    return write


def lora(rank: int = 16, **options: Any) -> Any:
    model = load_base(TINY, root=Path.cwd(), dtype=torch.float32, device=torch.device("cpu"))
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", **options)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)


def save(root: Path, model: Any, step: int, loss: float, ref: ModelRef = TINY) -> Path:
    return save_checkpoint(
        root / "runs/t/checkpoints",
        step,
        model=model,
        weights={name: p.detach() for name, p in adapter_parameters(model).items()},
        ref=ref,
        metrics={"validation/audio_loss": loss},
        write_more=describe,
    )


def describe(draft: Path) -> None:
    """What the train step writes beside an adapter, as far as the model card speaks of it."""
    lora = {"rank": 8, "alpha": 8.0, "rank_pattern": {}, "trainable_parameters": 1}
    job = {"run": "runs/t", "store": "runs/t/store", "checkpoints": "runs/t/checkpoints", "lora": lora}
    (draft / "job.json").write_text(json.dumps(job))
    none = SavedMeter(sums=(), audio_labels=0, text_labels=0, anchors=0)
    progress = Progress(
        step=1, seconds=0, store_sha256="0" * 64, versions={}, grad_norm=0, since_log=none, since_checkpoint=none,
        window=Window(),
    )  # fmt: skip
    (draft / "progress.json").write_text(progress.model_dump_json())


def merge_job(**changes: Any) -> MergeJob:
    settings = {"checkpoints": "runs/t/checkpoints", "select": "best", "dtype": "fp32", "merged": "runs/t/merged"}
    return MergeJob(**{**COMMON, **settings, **changes})


def evaluate_job(**changes: Any) -> EvaluateJob:
    settings = {
        "store": "runs/t/store",
        "merged": "runs/t/merged",
        "samples": 8,
        "prompts": "held-out",
        "temperature": 0.0,
        "evaluation": "runs/t/evaluation",
    }
    return EvaluateJob(**{**COMMON, **settings, **changes})


@pytest.mark.slow
def test_what_was_trained_is_what_is_spoken(
    tmp_path: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    """Learn one sample by heart; merged and asked, the model says it code for code, and stops."""
    store = Store.open(write_store(held_out=1))
    index = int(store.validation[0])
    model = lora(rank=32)
    module = LossModule(model)
    batch = pack([build_sequence(store.sample(index), AudioTokens.of(module.causal.config))])
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=5e-3)
    labels = batch.audio_labels.ne(-100).sum()
    for _ in range(300):
        sums = module(batch)
        loss = sums.audio.sum() / labels + sums.text / 3
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.02
    save(tmp_path, model, 1, loss.item())
    merge.run(merge_job(), context)
    result = evaluate.run(evaluate_job(), context)

    assert result.figures["base/audio_loss"] > 6 > 0.05 > result.figures["merged/audio_loss"]
    assert result.figures["code_accuracy"] == 1
    assert result.figures["samples_finished"] == 1
    sample = store.sample(index)
    merged = Speaker.load(tmp_path / "runs/t/merged", "builtin:tiny", dtype=torch.float32)
    speech = merged.respond(
        sample.prefix, sample.reference, sample.middle, seed=0, sampling=Sampling(temperature=0), max_seconds=30
    )
    assert speech.finished
    assert np.array_equal(speech.codes, sample.target)
    # The end comes within exactly as many seconds as there is to say, and is cut off a frame before.
    for frames, finished in ((len(sample.target), True), (len(sample.target) - 1, False)):
        cut = merged.respond(
            sample.prefix,
            sample.reference,
            sample.middle,
            seed=0,
            sampling=Sampling(temperature=0),
            max_seconds=(frames + 0.5) / 25,
        )
        assert (len(cut.codes), cut.finished) == (frames, finished)


def test_merge_step(tmp_path: Path, context: StepContext) -> None:
    model = lora(rank=4)
    for step, loss in ((1, 5.0), (2, 4.0), (3, 6.0)):
        with torch.no_grad():
            for name, parameter in adapter_parameters(model).items():
                if "lora_B" in name:
                    parameter.fill_(0.01 * step)
        save(tmp_path, model, step, loss)
    result = merge.run(merge_job(), context)
    merged = tmp_path / "runs/t/merged"
    assert result.outputs == (merged,)
    assert result.figures["merge/checkpoint_step"] == 2
    assert result.figures["merge/tensors"] == 42
    assert (
        0 <= float(result.figures["merge/max_logit_difference"]) < 1e-4 < float(result.figures["merge/adapter_effect"])
    )
    assert {path.name for path in result.inputs} >= {"adapter_model.safetensors", "manifest.json"}
    assert all(path.is_file() for path in result.inputs)
    last = merge.run(merge_job(select="last"), context)
    assert last.figures["merge/checkpoint_step"] == 3
    beat = read_heartbeat(tmp_path / "runs/t")
    assert beat is not None
    assert beat.done == beat.total == len(load_file(merged / "model.safetensors"))

    adapter = tmp_path / "runs/t/checkpoints/step-2/adapter/adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    with pytest.raises(StepError, match=r"adapter_model\.safetensors.*hash"):
        merge.run(merge_job(), context)


@pytest.mark.slow
def test_a_merge_is_quantised_and_evaluated(
    tmp_path: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    pytest.importorskip("torchao")
    write_store(held_out=3)
    model = lora(rank=4)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save(tmp_path, model, 1, 5.0)
    result = merge.run(merge_job(dtype="bf16", quantize="fp8"), context)
    assert result.summary.endswith("then in fp8")
    assert float(result.figures["merge/quantized_share_of_size"]) < 0.6
    assert 0 < abs(float(result.figures["merge/quantized_audio_loss_change"])) < 0.1
    assert 0 < float(result.figures["merge/quantized_codes_changed"]) < 0.2
    told = json.loads((tmp_path / "runs/t/merged/merge.json").read_text())["quantization"]
    assert told["difference"]["measured_on"] == "3 held-out samples"
    beat = read_heartbeat(tmp_path / "runs/t")
    assert beat is not None
    assert beat.done == beat.total == 2 * len(told["errors"]) + 2 * 21

    # What the step measures is what the evaluation finds in the model as it is loaded.
    figures = evaluate.run(evaluate_job(samples=0), context).figures
    assert figures["merged/audio_loss"] == pytest.approx(told["difference"]["audio_loss"], abs=0.02)


def test_merge_step_mistakes(tmp_path: Path, context: StepContext) -> None:
    with pytest.raises(StepError) as raised:
        merge.run(merge_job(), context)
    assert raised.value.code == ExitCode.MISSING_INPUT
    save(tmp_path, lora(rank=2), 1, 5.0, ref=TINY.model_copy(update={"revision": "abc"}))
    with pytest.raises(StepError, match="at revision abc"):
        merge.run(merge_job(), context)
    assert not (tmp_path / "runs/t/merged").exists()


@pytest.fixture
def merged(tmp_path: Path, context: StepContext) -> Path:
    model = lora(rank=4)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save(tmp_path, model, 1, 5.0)
    merge.run(merge_job(dtype="bf16"), context)
    return tmp_path / "runs/t/merged"


def test_evaluate_step(merged: Path, context: StepContext, write_store: Callable[..., Path]) -> None:
    store = Store.open(write_store(held_out=3))
    result = evaluate.run(evaluate_job(samples=2, temperature=1.0), context)
    folder = context.root / "runs/t/evaluation"
    report = json.loads((folder / "evaluation.json").read_text())
    assert result.outputs == (folder, folder / "set_a_1.wav", folder / "set_a_2.wav")
    assert report["schema"] == "higgsc.evaluation/v1"
    assert [sample["id"] for sample in report["samples"]] == ["set/a:1", "set/a:2"]
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "set_a_1.wav", "set_a_2.wav"}
    for sample in report["samples"]:
        wave, rate = soundfile.read(folder / sample["wav"])
        assert rate == 24_000
        assert len(wave) / rate == pytest.approx(sample["seconds"])
        assert sample["seconds"] <= sample["max_seconds"] == 2 * sample["target_seconds"] + 2
        assert 0 <= sample["code_accuracy"] < 0.1

    # The losses are those of the stored weights, and the merged model's are other than the base's.
    model = load_base(
        TINY.model_copy(update={"base": str(merged)}), root=merged, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    apart = np.split(store.validation, len(store.validation))
    expected = validation_losses(LossModule(model), store, apart, mesh=Mesh.single(torch.device("cpu")))
    assert result.figures["merged/audio_loss"] == expected.audio == report["losses"]["merged"]["audio"]
    assert result.figures["base/audio_loss"] == report["losses"]["base"]["audio"] != expected.audio
    assert len(report["losses"]["base"]["audio_codebooks"]) == 8

    again = evaluate.run(evaluate_job(samples=2, temperature=1.0), context)
    assert json.loads((folder / "evaluation.json").read_text()) == report
    assert again.figures == result.figures


def test_a_whole_models_checkpoint_is_evaluated_as_it_is(
    tmp_path: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    """The best of two, which needs no merge; it computes in the number format that its configuration names."""
    store = Store.open(write_store(held_out=1))
    base = load_base(TINY, root=tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    checkpoints = tmp_path / "runs/t/checkpoints"
    for step, loss in ((1, 4.0), (2, 5.0)):
        with torch.no_grad():
            base.audio_lm_head.weight.mul_(1.5)
        metrics = {"validation/audio_loss": loss}
        with draft_checkpoint(checkpoints, step, metrics=metrics, interrupted=False) as (draft, _):
            copy_companions(base_folder("builtin:tiny", None, root=tmp_path), draft, torch.bfloat16)
            write_tensors(draft / "model.safetensors", base.state_dict())
    trained = SelectJob(checkpoints="runs/t/checkpoints", select="best", best="validation/audio_loss")
    result = evaluate.run(evaluate_job(samples=1, merged=None, trained=trained), context)
    ref = TINY.model_copy(update={"base": str(checkpoints / "step-1")})
    model = load_base(ref, root=tmp_path, dtype=torch.bfloat16, device=torch.device("cpu"))
    expected = validation_losses(
        LossModule(model), store, store.validation, mesh=Mesh.single(torch.device("cpu")), micro_samples=1
    )
    assert result.figures["merged/audio_loss"] == expected.audio != result.figures["base/audio_loss"]
    assert checkpoints / "step-1/manifest.json" in result.inputs
    assert " trained; " in result.summary


def test_evaluate_without_samples_reports_the_losses(
    merged: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    write_store(held_out=1)
    result = evaluate.run(evaluate_job(samples=0), context)
    assert result.figures["samples"] == 0
    assert "code_accuracy" not in result.figures


def test_prompts_of_the_training_are_spoken_when_asked_for(
    merged: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    store = Store.open(write_store(held_out=1))
    result = evaluate.run(evaluate_job(samples=1, prompts="training"), context)
    report = json.loads((context.root / "runs/t/evaluation/evaluation.json").read_text())
    assert [sample["id"] for sample in report["samples"]] == [store.sample(int(store.train[0])).id]
    assert "of the codes as recorded" in result.summary


def test_evaluate_step_mistakes(context: StepContext, write_store: Callable[..., Path]) -> None:
    with pytest.raises(StepError, match="store") as raised:
        evaluate.run(evaluate_job(), context)
    assert raised.value.code == ExitCode.MISSING_INPUT
    write_store(held_out=0)
    with pytest.raises(StepError, match=r"data\.validation\.fraction"):
        evaluate.run(evaluate_job(), context)
    write_store(held_out=1)
    with pytest.raises(StepError, match="merge step") as raised:
        evaluate.run(evaluate_job(), context)
    assert raised.value.code == ExitCode.MISSING_INPUT


def test_store_of_another_codec(merged: Path, context: StepContext, write_store: Callable[..., Path]) -> None:
    write_store(held_out=1, codec_name="another")
    with pytest.raises(StepError, match="audio tokenizer another"):
        evaluate.run(evaluate_job(), context)
    assert not (context.root / "runs/t/evaluation").exists()


def test_code_accuracy() -> None:
    target = np.arange(80, dtype=np.uint16).reshape(10, 8)
    assert evaluate.code_accuracy(target, target) == 1
    assert evaluate.code_accuracy(target[:5], target) == 0.5
    assert evaluate.code_accuracy(np.concatenate((target, target)), target) == 0.5
    assert evaluate.code_accuracy(target[:0], target) == 0
    wrong = target.copy()
    wrong[0, 0] += 1
    assert evaluate.code_accuracy(wrong, target) == 79 / 80
