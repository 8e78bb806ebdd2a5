"""`higgsc evaluate` on a run, with models that listen."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
soundfile = pytest.importorskip("soundfile")
jiwer = pytest.importorskip("jiwer")

import soxr  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoFeatureExtractor, WavLMForXVector  # noqa: E402

from higgsc.cli.evaluate import command  # noqa: E402
from higgsc.contract.jobs import StepContext  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.evaluate.recognise import Recogniser  # noqa: E402
from higgsc.deploy.evaluate.trained import find_trained  # noqa: E402
from higgsc.deploy.evaluate.words import normalise  # noqa: E402
from tests.deploy.judges import tiny_wavlm, tiny_whisper  # noqa: E402
from tests.deploy.small_run import lora, save  # noqa: E402


@pytest.mark.slow
def test_the_command_on_a_run_with_models_that_listen(
    merged: Path, context: StepContext, write_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the run's folder alone: base, adapter and merge of it, which says the same as far as rounding goes."""
    write_store(held_out=1)
    monkeypatch.chdir(context.root)
    whisper, wavlm = tiny_whisper(context.root / "judges/whisper"), tiny_wavlm(context.root / "judges/wavlm")
    listen = ["--recogniser", "judges/whisper", "--similarity", "./judges/wavlm", "--language", "ar"]

    def higgsc(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(command, ["runs/t", "--samples", "1", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        folder = Path(result.stdout.split("evaluation.html: ")[0])
        assert "word errors" in result.stdout or not set(listen) & set(arguments)
        assert (folder / "evaluation.html").is_file()
        return json.loads((folder / "evaluation.json").read_text())

    found = higgsc(*listen)
    folder = context.root / "runs/t/evaluation"
    assert list(found["models"]) == ["base", "adapter", "merged"]
    assert (found["models"]["merged"]["place"], found["store"]) == ("runs/t/merged", "runs/t/store")
    assert (found["recogniser"]["name"], found["similarity"]["name"]) == ("judges/whisper", "./judges/wavlm")
    (sample,) = found["samples"]
    voices = {"recording": sample["recording"], **sample["spoken"]}
    said = {who: soundfile.read(folder / one["wav"], dtype="float32")[0] for who, one in voices.items()}
    cpu = torch.device("cpu")
    recogniser = Recogniser.load(str(whisper), root=context.root, device=cpu, language="ar")
    extractor, model = AutoFeatureExtractor.from_pretrained(wavlm), WavLMForXVector.from_pretrained(wavlm).eval()

    def embedding(wave: np.ndarray) -> np.ndarray:
        inputs = extractor(soxr.resample(wave, 24_000, 16_000), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            vector = model(**inputs).embeddings[0].numpy().astype(np.float64)
        return vector / np.linalg.norm(vector)

    reference = embedding(soundfile.read(folder / sample["reference"], dtype="float32")[0])
    for who, wave in said.items():
        transcript = recogniser.transcribe(wave)
        one = voices[who]
        assert one["transcript"] == transcript
        expected = jiwer.wer(normalise(sample["target_text"]), normalise(transcript))
        total = found["recordings"] if who == "recording" else found["models"][who]["totals"]
        assert one["word_errors"] == expected == total["word_errors"]
        if len(wave) >= 12_000:
            assert one["similarity"] == pytest.approx(embedding(wave) @ reference, abs=1e-4)
        else:
            assert one["similarity"] is None

    # An adapter alone computes as its base is stored; a merge of it that lies elsewhere is named.
    run, elsewhere = context.root / "runs/t", context.root / "elsewhere"
    merged.rename(elsewhere)
    alone = higgsc("--samples", "0", "-o", "alone")
    assert {kind: one["place"] for kind, one in alone["models"].items()} == {
        "base": "builtin:tiny", "adapter": "runs/t/checkpoints/step-1/adapter"
    }  # fmt: skip
    assert (found["dtype"], alone["dtype"]) == ("bfloat16", "float32")
    audio = [alone["models"][kind]["losses"]["audio"] for kind in ("base", "adapter")]
    assert audio[1] == pytest.approx(found["models"]["merged"]["losses"]["audio"], rel=0.02)
    assert audio[1] != pytest.approx(audio[0], rel=1e-3)
    named = higgsc("--samples", "0", "-o", "named", "--merged", "elsewhere")
    assert named["models"]["merged"] == {**named["models"]["merged"], "place": "elsewhere"}
    assert named["models"]["merged"]["losses"] == found["models"]["merged"]["losses"]
    elsewhere.rename(merged)

    # Its adapter's own folder is the checkpoint; an adapter of another model is refused before anything is loaded.
    adapter = run / "checkpoints/step-1/adapter"
    assert find_trained(adapter, None, None) == find_trained(adapter.parent, None, None)
    other_model = context.root / "judges/halved"
    shutil.copytree(adapter, other_model)
    weights = load_file(other_model / "adapter_model.safetensors")
    halved = {name: tensor[: len(tensor) // 2] if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(halved, other_model / "adapter_model.safetensors")
    arguments = [str(other_model), "--base", "builtin:tiny", "--audio-tokenizer", "builtin:tiny"]
    with monkeypatch.context() as patch:
        patch.setattr("higgsc.deploy.evaluate.step.load_base", lambda *_, **__: pytest.fail("loaded"))
        refused = CliRunner().invoke(command, [*arguments, "--store", "runs/t/store"])
    assert "trained on a base of another size" in str(refused.exception)

    # Of a merge whose checkpoint is gone, that is said; a checkpoint that it is not of is compared without it.
    save(context.root, lora(rank=4), 2, 4.0)
    other = higgsc("--samples", "0", "--select", "best", "-o", "other")
    assert other["models"]["adapter"]["place"].endswith("step-2/adapter")
    assert "merged" not in other["models"]
    # A merge is compared with the checkpoint that it was made from, though it is not the best any more.
    shutil.copytree(merged, elsewhere)
    for arguments in ((), ("--merged", "elsewhere")):
        again = higgsc("--samples", "0", "-o", "again", *arguments)["models"]
        assert list(again) == ["base", "adapter", "merged"]
        assert again["adapter"]["place"].endswith("step-1/adapter")
    (run / "checkpoints/step-1").rename(context.root / "gone")
    result = CliRunner().invoke(command, ["runs/t", "--samples", "0"], catch_exceptions=False)
    assert "is in none of the run's checkpoints any more" in result.stderr
    assert "0 base" not in result.stdout
    assert list(json.loads((folder / "evaluation.json").read_text())["models"]) == ["base", "merged"]

    for arguments, code, words in (
        (["runs/t", "--select", "step-2", "--merged", "runs/t/merged"], ExitCode.USAGE, "made from another adapter"),
        (["runs/t/merged", "--merged", "runs/t/merged"], ExitCode.USAGE, "--merged is for adapters"),
        (["runs/t", "--merged", "runs/none"], ExitCode.MISSING_INPUT, "no such folder"),
        (["runs/t", "--recogniser", "./judges/wavlm"], ExitCode.BAD_DATA, "type `wavlm`, not `whisper`"),
        (["runs/t", "--similarity", "./judges/none"], ExitCode.MISSING_INPUT, "cannot load"),
        (["runs/t/merged", "--select", "last"], ExitCode.USAGE, "--select is for runs"),
        (["runs/none"], ExitCode.MISSING_INPUT, "no run, build or spec"),
        (["judges/whisper"], ExitCode.USAGE, "give --base and --store"),
        (["judges"], ExitCode.MISSING_INPUT, "neither a run with checkpoints nor a model"),
    ):
        with pytest.raises(StepError, match=re.escape(words)) as raised:
            CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert raised.value.code == code
