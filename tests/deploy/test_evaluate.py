"""From a store and a checkpoint to a merged model and its evaluation, on the tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
soundfile = pytest.importorskip("soundfile")

from transformers import HiggsAudioV2ForConditionalGeneration  # noqa: E402

from higgsc.contract.evaluation import Evaluation  # noqa: E402
from higgsc.contract.heartbeat import read_heartbeat  # noqa: E402
from higgsc.contract.jobs import SelectJob, StepContext  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.codec import Codec  # noqa: E402
from higgsc.data.store import Store  # noqa: E402
from higgsc.deploy.evaluate import step as evaluate  # noqa: E402
from higgsc.deploy.evaluate.measures import code_accuracy  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.merge import step as merge  # noqa: E402
from higgsc.train.checkpoints.checkpoint import draft_checkpoint, write_tensors  # noqa: E402
from higgsc.train.model.build import adapter_parameters, load_base  # noqa: E402
from higgsc.train.model.folder import base_folder, copy_companions  # noqa: E402
from higgsc.train.objective.loss import LossModule  # noqa: E402
from higgsc.train.objective.validate import validation_losses  # noqa: E402
from higgsc.train.parallel.mesh import Mesh  # noqa: E402
from higgsc.train.rows.row import pack  # noqa: E402
from higgsc.train.rows.sequence import AudioTokens, build_sequence  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402
from tests.deploy.small_run import TINY, evaluate_job, lora, merge_job, save  # noqa: E402


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

    for kind in ("adapter", "merged"):
        assert result.figures["base/audio_loss"] > 6 > 0.05 > result.figures[f"{kind}/audio_loss"]
        assert result.figures[f"{kind}/code_accuracy"] == 1
        assert result.figures[f"{kind}/finished"] == 1
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


@pytest.mark.slow
def test_evaluate_step(merged: Path, context: StepContext, write_store: Callable[..., Path], codec: Codec) -> None:
    """Every figure of all three is computed a second time: from the WAV files with numpy, from the logits with
    transformers, the adapter put on by PEFT."""
    store = Store.open(write_store(held_out=3))
    result = evaluate.run(evaluate_job(samples=2, temperature=1.0), context)
    folder = context.root / "runs/t/evaluation"
    text = (folder / "evaluation.json").read_text()
    report = json.loads(text)
    assert Evaluation.model_validate_json(text).model_dump(mode="json") == report
    assert report["evaluation_schema"] == "higgsc.evaluation/v3"
    models = report["models"]
    adapter = "runs/t/checkpoints/step-1/adapter"
    places = {"base": "builtin:tiny", "adapter": adapter, "merged": "runs/t/merged"}
    assert {kind: one["place"] for kind, one in models.items()} == places
    assert list(models) == list(places)
    assert [sample["id"] for sample in report["samples"]] == ["set/a:1", "set/a:2"]
    voices = ("reference", "recording", *models)
    wavs = {f"set_a_{n}.{who}.wav" for n in (1, 2) for who in voices}
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "evaluation.html", *wavs}
    proofs = {"runs/t/store/store.json", "runs/t/checkpoints/step-1/manifest.json", "runs/t/merged/merge.json"}
    assert {path.relative_to(context.root).as_posix() for path in result.inputs} == proofs
    assert result.outputs == (folder / "evaluation.json", folder / "evaluation.html")

    indices = [int(index) for index in store.validation[:2]]
    for index, sample in zip(indices, report["samples"], strict=True):
        target = store.sample(index).target
        reference = soundfile.read(folder / sample["reference"])[0]
        assert np.abs(reference - codec.decode(store.sample(index).reference)).max() < 1e-4
        assert np.abs(soundfile.read(folder / sample["recording"]["wav"])[0] - codec.decode(target)).max() < 1e-4
        assert sample["max_seconds"] == 2 * len(target) / 25 + 2
        assert list(sample["spoken"]) == list(models)
        for who, said in {"recording": sample["recording"], **sample["spoken"]}.items():
            wave, rate = soundfile.read(folder / said["wav"])
            assert rate == 24_000
            assert len(wave) / rate == said["seconds"] <= sample["max_seconds"]
            assert said["clipped"] == np.mean(np.abs(wave) >= 0.999)
            frames = wave[: len(wave) // 480 * 480].reshape(-1, 480)
            assert said["silence"] == pytest.approx(np.mean(np.sqrt(np.mean(frames**2, axis=1)) < 1e-3))
            if who != "recording":
                assert said["duration_ratio"] == pytest.approx(said["seconds"] / (len(target) / 25))
                assert said["took_seconds"] > 0
    for who in models:
        told, total = [sample["spoken"][who] for sample in report["samples"]], models[who]["totals"]
        recorded = sum(sample["recording"]["seconds"] for sample in report["samples"])
        seconds, took = sum(one["seconds"] for one in told), sum(one["took_seconds"] for one in told)
        assert total["finished"] == sum(one["finished"] for one in told) == result.figures[f"{who}/finished"]
        assert total["duration_ratio"] == pytest.approx(seconds / recorded)
        assert total["real_time_factor"] == pytest.approx(took / seconds)
        assert total["samples_per_second"] == pytest.approx(2 / took)
        for name in ("silence", "clipped", "code_accuracy"):
            assert total[name] == pytest.approx(np.mean([one[name] for one in told]))
        assert total["word_errors"] is total["similarity"] is None
        assert f"{who}/word_errors" not in result.figures

    # With the same seed the base says what it says when it is asked alone.
    sample = store.sample(indices[0])
    alone = Speaker.load("builtin:tiny", "builtin:tiny", dtype=torch.bfloat16).respond(
        sample.prefix,
        sample.reference,
        sample.middle,
        seed=report["samples"][0]["seed"],
        sampling=Sampling(temperature=1.0),
        max_seconds=report["samples"][0]["max_seconds"],
    )
    by_base = soundfile.read(folder / report["samples"][0]["spoken"]["base"]["wav"])[0]
    assert np.abs(by_base - alone.wave).max() < 1e-4
    base = base_folder("builtin:tiny", None, root=merged)
    for who, place, on in (("base", base, None), ("adapter", base, context.root / adapter), ("merged", merged, None)):
        found = models[who]["losses"]
        assert found["audio"] == result.figures[f"{who}/audio_loss"]
        by_hand = losses_by_hand(place, store, on)
        assert found["audio_codebooks"] == pytest.approx(by_hand[:8], rel=2e-3)
        assert found["text"] == pytest.approx(by_hand[8], rel=2e-3)
        assert found["audio"] == pytest.approx(np.mean(by_hand[:8]), rel=2e-3)
    different = {one["losses"]["audio"] for one in models.values()}
    assert len(different) == 3  # the merge rounds to bfloat16
    apart = [abs(models[who]["losses"]["audio"] - models["merged"]["losses"]["audio"]) for who in ("adapter", "base")]
    assert apart[0] < apart[1] / 10


def losses_by_hand(folder: Path, store: Store, adapter: Path | None) -> list[float]:
    """Audio losses by codebook, then the text loss, with nothing of the trainer's: transformers' model over whole
    sequences, the delay pattern written out, logarithms in numpy."""
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, use_text_head=True, dtype=torch.bfloat16)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).get_base_model()
    config, surprises = model.config, [[] for _ in range(9)]
    for index in map(int, store.validation):
        sample = store.sample(index)
        ids, rows = [*sample.prefix], []
        for codes, text in ((sample.reference, sample.middle), (sample.target, sample.suffix)):
            start = len(ids)
            delayed = np.full((len(codes) + 9, 8), 1025)
            for k in range(8):
                delayed[: k + 1, k] = 1024
                delayed[k + 1 : k + 1 + len(codes), k] = codes[:, k]
            rows.append(delayed)
            ids += [config.audio_token_id] * (len(delayed) - 7) + [config.audio_delay_token_id] * 7 + [*text]
        with torch.no_grad():
            hidden = model.model(
                input_ids=torch.tensor([ids]),
                audio_input_ids=torch.tensor(np.concatenate(rows))[None],
                audio_input_ids_mask=torch.ones(1, sum(map(len, rows)), dtype=torch.bool),
            ).last_hidden_state[0]
            audio = log_softmax(model.audio_lm_head(hidden).float().numpy().reshape(len(ids), 8, 1026))
            text = log_softmax(model.text_lm_head(hidden).float().numpy())
        for k in range(8):
            for frame, code in enumerate([*sample.target[:, k], 1025]):  # each predicted by the row before its own
                surprises[k].append(-audio[start + k + frame, k, code])
        for position in (start - 1, len(ids) - 2, len(ids) - 1):
            surprises[8].append(-text[position - 1, ids[position]])
    return [float(np.mean(one)) for one in surprises]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


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
    expected = validation_losses(LossModule(model), store, [store.validation], mesh=Mesh.single(torch.device("cpu")))
    assert result.figures["whole/audio_loss"] == expected.audio != result.figures["base/audio_loss"]
    assert checkpoints / "step-1/manifest.json" in result.inputs
    assert " base, " in result.summary
    assert " whole; " in result.summary


def test_a_missing_jiwer_is_said_before_anything_is_loaded(
    merged: Path, context: StepContext, write_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(held_out=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StepError, match="needs the package jiwer") as raised:
        evaluate.run(evaluate_job(recogniser="openai/whisper-large-v3"), context)
    assert raised.value.code == ExitCode.MISSING_INPUT


def test_evaluate_without_samples_reports_the_losses(
    merged: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    write_store(held_out=1)
    result = evaluate.run(evaluate_job(samples=0), context)
    assert result.figures["samples"] == 0
    assert "merged/code_accuracy" not in result.figures
    assert [path.name for path in (context.root / "runs/t/evaluation").glob("*.wav")] == []


def test_prompts_of_the_training_are_spoken_when_asked_for(
    merged: Path, context: StepContext, write_store: Callable[..., Path]
) -> None:
    store = Store.open(write_store(held_out=1))
    result = evaluate.run(evaluate_job(samples=1, prompts="training"), context)
    report = json.loads((context.root / "runs/t/evaluation/evaluation.json").read_text())
    assert [sample["id"] for sample in report["samples"]] == [store.sample(int(store.train[0])).id]
    assert "of the codes as recorded" in result.summary


def test_evaluate_step_mistakes(merged: Path, context: StepContext, write_store: Callable[..., Path]) -> None:
    with pytest.raises(StepError, match="store") as raised:
        evaluate.run(evaluate_job(), context)
    assert raised.value.code == ExitCode.MISSING_INPUT
    write_store(held_out=0)
    with pytest.raises(StepError, match=r"data\.validation\.fraction"):
        evaluate.run(evaluate_job(), context)
    write_store(held_out=1)
    save(context.root, lora(rank=4), 2, 4.0)  # a better one than was merged
    with pytest.raises(StepError, match=r"made from another adapter than .*step-2.*\n.*run the merge step again"):
        evaluate.run(evaluate_job(), context)
    merged.rename(merged.with_name("elsewhere"))
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
    assert code_accuracy(target, target) == 1
    assert code_accuracy(target[:5], target) == 0.5
    assert code_accuracy(np.concatenate((target, target)), target) == 0.5
    assert code_accuracy(target[:0], target) == 0
    wrong = target.copy()
    wrong[0, 0] += 1
    assert code_accuracy(wrong, target) == 79 / 80


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
