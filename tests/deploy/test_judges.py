"""The models that listen: a Whisper and a WavLM made on the spot, against transformers' own use of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import soxr  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoFeatureExtractor,
    AutoProcessor,
    WavLMForXVector,
    WavLMModel,
    WhisperForConditionalGeneration,
)

from higgsc.contract.evaluation import Judge  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.evaluate.judges import judge_config  # noqa: E402
from higgsc.deploy.evaluate.recognise import Recogniser  # noqa: E402
from higgsc.deploy.evaluate.similarity import Voices  # noqa: E402
from tests.deploy.judges import tiny_wavlm, tiny_whisper  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("judges") / "whisper")


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wavlm(tmp_path_factory.mktemp("judges") / "wavlm")


def wave(seconds: float, hertz: float) -> np.ndarray:
    time = np.arange(round(seconds * 24_000)) / 24_000
    noise = np.random.default_rng(0).normal(0, 0.02, len(time))
    return (0.3 * np.sin(2 * np.pi * hertz * time) + noise).astype(np.float32)


def test_transcripts_are_those_of_plain_transformers(whisper: Path) -> None:
    recogniser = Recogniser.load("whisper", root=whisper.parent, device=CPU, language="ar")
    assert recogniser.judge == Judge(name="whisper", commit=None)
    processor = AutoProcessor.from_pretrained(whisper)
    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    said = []
    for hertz in (200, 900):
        samples = wave(1.5, hertz)
        features = processor(soxr.resample(samples, 24_000, 16_000), sampling_rate=16_000, return_tensors="pt")
        ids = model.generate(features.input_features, language="ar", task="transcribe", do_sample=False)
        expected = processor.decode(ids[0], skip_special_tokens=True).strip()
        said.append(recogniser.transcribe(samples))
        assert said[-1] == expected == recogniser.transcribe(samples)
        assert "<|" not in said[-1]
    assert all(said)
    assert recogniser.transcribe(np.zeros(0, dtype=np.float32)) == ""
    assert recogniser.transcribe(wave(0.05, 300)) == ""
    assert isinstance(recogniser.transcribe(wave(31, 300)), str)  # more than it hears at a time


def test_voices_are_those_of_plain_transformers(wavlm: Path) -> None:
    voices = Voices.load(str(wavlm), root=Path.cwd(), device=CPU)
    extractor, model = AutoFeatureExtractor.from_pretrained(wavlm), WavLMForXVector.from_pretrained(wavlm).eval()
    low, high = wave(1, 200), wave(0.8, 1500)
    plain = []
    for samples in (low, high):
        inputs = extractor(soxr.resample(samples, 24_000, 16_000), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            plain.append(model(**inputs).embeddings[0].numpy().astype(np.float64))
    cosine = plain[0] @ plain[1] / np.linalg.norm(plain[0]) / np.linalg.norm(plain[1])
    one, other = voices.embed(low), voices.embed(high)
    assert voices.similarity(one, other) == pytest.approx(cosine, abs=1e-5)
    assert voices.similarity(one, one) == pytest.approx(1)
    assert voices.embed(low[: 24_000 // 3]) is None
    assert voices.similarity(one, None) is None
    assert voices.embed(low[:12_000]) is not None


def test_mistakes_are_told_before_anything_is_loaded(whisper: Path, wavlm: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"recogniser: wavlm` is a model of type `wavlm`, not `whisper`"):
        judge_config("wavlm", "recogniser", "whisper", root=wavlm.parent)
    with pytest.raises(StepError, match=r"cannot load `evaluate\.similarity: \./nothing`") as raised:
        judge_config("./nothing", "similarity", "wavlm", root=tmp_path)
    assert raised.value.code == ExitCode.MISSING_INPUT
    with pytest.raises(StepError, match=r"does not know the language `xx`.*") as raised:
        Recogniser.load(str(whisper), root=tmp_path, device=CPU, language="xx")
    assert "ar, en" in str(raised.value)


def test_a_released_checkpoint_has_older_names_and_lacks_what_only_training_needs(wavlm: Path, tmp_path: Path) -> None:
    """Pickled by torch, the weight norm by its former names, no vector for masked sound."""
    tensors, older = load_file(wavlm / "model.safetensors"), {}
    assert any(name.endswith("masked_spec_embed") for name in tensors)
    for name, tensor in tensors.items():
        if not name.endswith("masked_spec_embed"):
            name = name.replace("parametrizations.weight.original0", "weight_g")
            older[name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    assert any(name.endswith("weight_g") for name in older)
    torch.save(older, tmp_path / "pytorch_model.bin")
    for path in wavlm.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    samples = wave(1, 440)
    one, other = (Voices.load(str(folder), root=tmp_path, device=CPU).embed(samples) for folder in (wavlm, tmp_path))
    assert torch.equal(one, other)


def test_a_wavlm_that_never_learned_voices_is_refused(wavlm: Path, tmp_path: Path) -> None:
    """transformers would put random layers on it, and only warn."""
    plain = WavLMModel(WavLMForXVector.from_pretrained(wavlm).config)
    plain.save_pretrained(tmp_path / "plain")
    AutoFeatureExtractor.from_pretrained(wavlm).save_pretrained(tmp_path / "plain")
    with pytest.raises(StepError, match="lacks weights of speaker verification"):
        Voices.load("plain", root=tmp_path, device=CPU)


def test_half_a_whisper_is_refused(whisper: Path, tmp_path: Path) -> None:
    for path in whisper.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StepError, match="cannot load") as raised:
        Recogniser.load(str(tmp_path), root=tmp_path, device=CPU, language=None)
    assert raised.value.code == ExitCode.MISSING_INPUT
