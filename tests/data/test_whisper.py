"""What a Whisper hears of references: frame by frame of the codec, once, and the same whoever did the work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

torch = pytest.importorskip("torch")

from transformers import WhisperFeatureExtractor, WhisperModel  # noqa: E402

from higgsc.contract.jobs import EncodeJob, ModelRef, WhisperRef  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data import encode  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.layout import Segments  # noqa: E402
from higgsc.data.store import HEARD_FILES, STORE_FILE, STORE_FILES, Store  # noqa: E402
from higgsc.data.store_writer import StoreWriter  # noqa: E402
from higgsc.data.whisper import WhisperEncoder  # noqa: E402
from tests.data.rows import sample  # noqa: E402
from tests.whisper import WIDTH, load, make_whisper, some_features, some_listener  # noqa: E402


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> WhisperRef:
    return make_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(24_000 * seconds)).astype(np.float32)


def floats(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16).float()


def by_hand(ref: WhisperRef, wave: np.ndarray) -> torch.Tensor:
    """Two vectors of transformers' own encoder a frame, of one window."""
    model, extractor = WhisperModel.from_pretrained(ref.encoder), WhisperFeatureExtractor.from_pretrained(ref.encoder)
    heard = soxr.resample(wave, 24_000, 16_000, quality="HQ")
    mels = extractor(heard, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        hidden = model.encoder(mels).last_hidden_state[0]
    return (hidden[0::2] + hidden[1::2]) / 2


@pytest.mark.parametrize("seconds, frames", [(1.0, 25), (1.03, 26), (0.02, 1), (2.0, 50)])
def test_a_vector_for_each_frame_of_the_codec(ref: WhisperRef, seconds: float, frames: int) -> None:
    wave = noise(seconds)
    heard = load(ref).encode(wave)
    assert (heard.dtype, heard.shape) == (np.uint16, (frames, WIDTH))
    expected = by_hand(ref, wave)[:frames]
    torch.testing.assert_close(floats(heard), expected, rtol=2**-7, atol=2**-8)
    assert frames == 1 or expected.std(dim=0).min() > 1e-3, "the frames differ"


def test_what_is_longer_than_a_window_is_heard_in_windows(ref: WhisperRef) -> None:
    """Nothing is cut off: two windows of 2 s, and a third with half a second."""
    wave = noise(4.5)
    heard = load(ref).encode(wave)
    assert len(heard) == 113
    windows = [by_hand(ref, wave[start : start + 48_000]) for start in (0, 48_000, 96_000)]
    # At the edges of the windows the resampling of the whole differs from that of the part.
    inner = [torch.arange(2, 48), torch.arange(52, 98), torch.arange(102, 110)]
    for number, frames in enumerate(inner):
        expected = windows[number][frames - 50 * number]
        torch.testing.assert_close(floats(heard)[frames], expected, rtol=0.02, atol=0.05)


def test_another_whisper_has_another_fingerprint(ref: WhisperRef, tmp_path: Path) -> None:
    other, copy = make_whisper(tmp_path / "other", seed=1), make_whisper(tmp_path / "copy")
    prints = [load(each).fingerprint for each in (ref, other, copy)]
    assert prints[0] == prints[2] != prints[1]


def test_what_is_no_such_whisper_is_refused(ref: WhisperRef, tmp_path: Path) -> None:
    def refused(named: WhisperRef) -> StepError:
        with pytest.raises(StepError) as caught:
            WhisperEncoder.load(named, root=tmp_path, device="cpu")
        assert caught.value.help is not None
        return caught.value

    assert refused(ref.model_copy(update={"encoder": "./nowhere"})).code == ExitCode.MISSING_INPUT
    wide = refused(ref.model_copy(update={"width": 1280}))
    assert "it has 16 features, and 1280 were expected" in wide.message
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    assert "is a model of type `bert`" in refused(ref.model_copy(update={"encoder": "bert"})).message
    lacking = make_whisper(tmp_path / "lacking")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "lacking/model.safetensors")
    del weights[next(name for name in weights if name.endswith("encoder.conv1.weight"))]
    save_file(weights, tmp_path / "lacking/model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights of its encoder" in refused(lacking).message
    settings = json.loads((Path(ref.encoder) / "preprocessor_config.json").read_text())
    crooked = make_whisper(tmp_path / "crooked")
    (tmp_path / "crooked/preprocessor_config.json").write_text(json.dumps(settings | {"feature_size": 80}))
    assert "do not fit each other" in refused(crooked).message


CLIPS = 5


@pytest.fixture
def speech(project: Any) -> Any:
    """Clips of which the last is a target only, and the others are references."""
    names = [project.audio(f"{number}.wav", 0.3 + 0.04 * number, seed=number) for number in range(CLIPS)]
    rows = [sample(str(number), names[number], names[number + 1]) for number in range(CLIPS - 1)]
    project.write([*rows, sample("again", names[0], names[2])])
    for path in (project.root / "data/audio").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return project


def model(ref: WhisperRef | None) -> ModelRef:
    return ModelRef(
        base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None, whisper=ref
    )


def test_the_store_holds_what_was_heard_of_references(speech: Any, ref: WhisperRef) -> None:
    speech.prepare()
    plain = speech.contents()
    assert plain.keys() == {*STORE_FILES, STORE_FILE}
    result = speech.prepare(model=model(ref))
    assert result.figures["heard clips"] == CLIPS - 1
    listened = speech.contents()
    assert listened.keys() == {*STORE_FILES, *HEARD_FILES, STORE_FILE}
    assert {name: listened[name] for name in STORE_FILES} == {name: plain[name] for name in STORE_FILES}
    store, encoder = speech.store(), load(ref)
    assert store.listener == encoder.listener
    for number in range(CLIPS):
        one, record = store.sample(number), store.record(number)
        wave = read_mono(speech.root / record["reference_audio"]["path"], max_seconds=30)
        assert one.heard is not None
        assert np.array_equal(one.heard, encoder.encode(wave))
        assert len(one.heard) == len(one.reference)
    assert len(store.heard) == sum(len(store.sample(number).reference) for number in range(CLIPS - 1)), "each once"
    assert speech.prepare(model=model(ref)).figures["heard clips"] == 0, "kept in the cache"
    assert speech.contents() == listened
    speech.prepare()
    assert speech.contents() == plain
    assert speech.store().sample(0).heard is None


@pytest.mark.slow
def test_it_is_the_same_whatever_the_number_of_workers(
    speech: Any, ref: WhisperRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    speech.prepare(model=model(ref))
    alone = speech.contents()
    speech.prepare(model=model(ref), cache="two", workers=2)
    assert speech.contents() == alone
    assert len(list((speech.root / "two").glob("*/*.codes"))) == 4, "two processes for the codes, two to listen"


def test_it_is_the_same_whatever_the_number_of_shards(speech: Any, ref: WhisperRef) -> None:
    speech.prepare(model=model(ref))
    alone = speech.contents()
    fields = speech.job(model=model(ref), cache="shards").model_dump()
    for name in ("step", "validation_fraction", "validation_by", "store"):
        del fields[name]
    for shard in (1, 0):
        encode.run(EncodeJob(**fields, shards=2), speech.context, shard)
    result = speech.prepare(model=model(ref), cache="shards")
    assert (result.figures["encoded clips"], result.figures["heard clips"]) == (0, 0)
    assert speech.contents() == alone


def test_a_store_that_was_tampered_with_is_found(speech: Any, ref: WhisperRef) -> None:
    speech.prepare(model=model(ref))
    path = speech.root / "runs/test/store"
    (path / "heard.bf16").write_bytes((path / "heard.bf16").read_bytes()[:-2])
    with pytest.raises(StepError, match=r"bytes, store\.json says") as caught:
        Store.open(path)
    assert caught.value.path == path / "heard.bf16"


def test_a_writer_wants_features_of_each_reference(tmp_path: Path) -> None:
    codes, ids = np.zeros((3, 8), dtype=np.uint16), np.array([1, 2])
    with StoreWriter(tmp_path / "store", made_by={}, listener=some_listener()) as store:
        with pytest.raises(ValueError, match=r"of 3 frames 16 numbers each are heard, not \[2, 16\]"):
            store.add_clip(codes, audio=bytes(32), heard=some_features(0, 2))
        heard = store.add_clip(codes, audio=bytes(32), heard=some_features(0, 3))
        unheard = store.add_clip(codes, audio=bytes(32))
        parts: dict[str, Any] = {"speaker": "", "validation": False, "record": {"id": "a"}}
        segments = Segments(prefix=ids, middle=ids, suffix=ids)
        with pytest.raises(ValueError, match="a reference is listened to"):
            store.add_sample(segments, reference=unheard, target=heard, **parts)
        store.add_sample(segments, reference=heard, target=unheard, **parts)
    assert np.array_equal(Store.open(tmp_path / "store").sample(0).heard, some_features(0, 3))
