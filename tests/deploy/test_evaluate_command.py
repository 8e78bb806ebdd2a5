"""`higgsc evaluate` on a run, with models that listen."""

from __future__ import annotations

import json
import re
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
from transformers import AutoFeatureExtractor, WavLMForXVector  # noqa: E402

from higgsc.cli.evaluate import command  # noqa: E402
from higgsc.contract.jobs import StepContext  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.evaluate.recognise import Recogniser  # noqa: E402
from higgsc.deploy.evaluate.words import normalise  # noqa: E402
from tests.deploy.judges import tiny_wavlm, tiny_whisper  # noqa: E402


@pytest.mark.slow
def test_the_command_on_a_run_with_models_that_listen(
    merged: Path, context: StepContext, write_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the run's folder alone; the checkpoint's adapter says what the merge of it says, as far as rounding goes."""
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
    assert (found["kind"], found["trained"], found["store"]) == ("merged", "runs/t/merged", "runs/t/store")
    assert (found["recogniser"]["name"], found["similarity"]["name"]) == ("judges/whisper", "./judges/wavlm")
    (sample,) = found["samples"]
    voices = ("recording", "base", "trained")
    said = {who: soundfile.read(folder / sample[who]["wav"], dtype="float32")[0] for who in voices}
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
        assert sample[who]["transcript"] == transcript
        expected = jiwer.wer(normalise(sample["target_text"]), normalise(transcript))
        total = found["recordings" if who == "recording" else f"{who}_totals"]
        assert sample[who]["word_errors"] == expected == total["word_errors"]
        if len(wave) >= 12_000:
            assert sample[who]["similarity"] == pytest.approx(embedding(wave) @ reference, abs=1e-4)
        else:
            assert sample[who]["similarity"] is None

    adapter = higgsc("--select", "best", "-o", "compared")
    assert (adapter["kind"], adapter["trained"]) == ("adapter", "runs/t/checkpoints/step-1/adapter")
    assert adapter["dtype"] == "float32"
    assert adapter["trained_losses"]["audio"] == pytest.approx(found["trained_losses"]["audio"], rel=0.02)
    assert adapter["trained_losses"]["audio"] != pytest.approx(adapter["base_losses"]["audio"], rel=1e-3)

    for arguments, code, words in (
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
