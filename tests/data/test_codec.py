"""The codec wrapper and the resampler it lends to transformers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
soxr = pytest.importorskip("soxr")
soundfile = pytest.importorskip("soundfile")

from higgsc.data.codec import Codec, audio_tokenizer_class, resample  # noqa: E402
from higgsc.train.model.builtin import tiny_path  # noqa: E402

CLIPS = Path(__file__).parents[2] / "specs/data/quickstart/audio"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(tiny_path("audio_tokenizer"))


def chirp(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """A gliding tone with harmonics and noise, `[samples]`, peak below 1."""
    random = np.random.default_rng(seed)
    time = np.arange(samples) / 24_000
    phase = 2 * np.pi * np.cumsum(120 + 60 * np.sin(2 * np.pi * 1.5 * time)) / 24_000
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 15))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    return (0.2 * envelope * voice + 0.01 * random.standard_normal(samples)).astype(np.float32)


def speech() -> list[NDArray[np.float32]]:
    """The demonstration's clips, at 24 kHz."""
    clips = []
    for path in sorted(CLIPS.glob("*.flac"))[:12]:
        wave, rate = soundfile.read(path, dtype="float32")
        clips.append(soxr.resample(wave, rate, 24_000).astype(np.float32))
    return clips


@pytest.mark.parametrize("samples", [1, 480, 960, 961, 24_000, 24_100, 24_900, 47_999])
def test_shapes(codec: Codec, samples: int) -> None:
    codes = codec.encode(chirp(samples))
    assert codes.dtype == np.uint16
    assert codes.shape == (codec.frames(samples), 8) == (-(-samples // 960), 8)
    wave = codec.decode(codes)
    assert wave.dtype == np.float32
    assert wave.shape == (len(codes) * 960,)
    assert np.isfinite(wave).all()


def test_same_codes_on_every_call_and_every_load(codec: Codec) -> None:
    wave = chirp(30_000)
    again = Codec.load(tiny_path("audio_tokenizer"))
    assert np.array_equal(codec.encode(wave), codec.encode(wave))
    assert np.array_equal(codec.encode(wave), again.encode(wave))
    assert np.array_equal(codec.decode(codec.encode(wave)), again.decode(again.encode(wave)))
    assert codec.fingerprint == again.fingerprint
    assert len(codec.fingerprint) == 64


def test_the_fingerprint_changes_with_a_weight(codec: Codec) -> None:
    other = Codec.load(tiny_path("audio_tokenizer"))
    with torch.no_grad():
        other.model.fc.weight[0, 0] += 1e-3
    assert other.fingerprint != codec.fingerprint


def test_whole_frames_get_the_codes_of_the_processor(codec: Codec) -> None:
    processor = transformers.HiggsAudioV2Processor.from_pretrained(tiny_path("model"))
    wave = chirp(20 * 960)
    rows = processor("<|AUDIO_OUT|>", audio=wave, sampling_rate=24_000, return_tensors="pt")["audio_input_ids"][0]
    undelayed = torch.stack([rows[k + 1 : k + 21, k] for k in range(8)], dim=1)
    assert np.array_equal(codec.encode(wave), undelayed.numpy())


def test_speech_gives_varied_codes(codec: Codec) -> None:
    clips = speech() or [chirp(48_000, seed) for seed in range(6)]
    codes = np.concatenate([codec.encode(clip) for clip in clips])
    distinct = [len(np.unique(codes[:, k])) for k in range(8)]
    assert sum(distinct) >= 100
    assert min(distinct) >= 20


def test_bad_input_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="float32"):
        codec.encode(np.zeros(960))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        codec.encode(np.zeros((960, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="no samples"):
        codec.encode(np.zeros(0, dtype=np.float32))
    with pytest.raises(ValueError, match="finite"):
        codec.encode(np.full(960, np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="shape"):
        codec.decode(np.zeros((8, 5), dtype=np.uint16))
    with pytest.raises(ValueError, match="1025"):
        codec.decode(np.full((5, 8), 1025, dtype=np.uint16))


def test_another_codec_is_refused() -> None:
    config = audio_tokenizer_class().config_class.from_pretrained(tiny_path("audio_tokenizer"))
    config.target_bandwidths = [0.5, 1, 1.5, 2, 4]
    with (
        torch.random.fork_rng(devices=[]),
        pytest.raises(ValueError, match="not the codec of Higgs Audio v2"),
    ):
        Codec(audio_tokenizer_class()(config), device="cpu")


def test_resample_agrees_with_soxr_on_a_band_limited_signal() -> None:
    wave = soxr.resample(chirp(12_000).astype(np.float64), 12_000, 24_000)  # nothing above 6 kHz
    ours = resample(torch.from_numpy(wave), 24_000, 16_000).numpy()
    theirs = soxr.resample(wave, 24_000, 16_000, quality="VHQ")
    assert ours.shape == theirs.shape
    inner = slice(200, -200)  # the two treat the edges differently
    # Six zero crossings leave a pass-band ripple of a few parts in a thousand.
    error = np.sqrt(np.mean((ours - theirs)[inner] ** 2) / np.mean(theirs[inner] ** 2))
    assert error < 5e-3


def test_resample_keeps_leading_dimensions_and_gradients() -> None:
    wave = torch.randn(2, 3, 2_401, dtype=torch.float64, requires_grad=True)
    out = resample(wave, 24_000, 16_000)
    assert out.shape == (2, 3, 1_601)
    out.square().sum().backward()
    assert wave.grad.abs().sum() > 0
    assert torch.equal(resample(wave, 16_000, 16_000), wave)


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is not None, reason="torchaudio is installed")
def test_the_stand_in_stays_inside_the_codec() -> None:
    cls = audio_tokenizer_class()
    assert "torchaudio" not in sys.modules
    assert not transformers.utils.is_torchaudio_available()
    assert sys.modules["transformers"].HiggsAudioV2TokenizerModel is cls
    assert isinstance(transformers.AutoModel.from_pretrained(tiny_path("audio_tokenizer")), cls)


def log_spectrogram(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-magnitude spectrogram, 40 ms windows, `[frames, bins]`."""
    windows = np.lib.stride_tricks.sliding_window_view(wave, 960)[::480] * np.hanning(960)
    return np.log(np.abs(np.fft.rfft(windows)) + 0.03)


def test_speech_survives_the_tiny_codec(codec: Codec) -> None:
    clips = speech()
    assert clips, f"no clips in {CLIPS}"
    for clip in clips:
        whole = clip[: len(clip) // 960 * 960]
        decoded = codec.decode(codec.encode(whole))
        similarity = np.corrcoef(log_spectrogram(whole).ravel(), log_spectrogram(decoded).ravel())[0, 1]
        assert similarity > 0.7
        assert 0.4 < decoded.std() / whole.std() < 1.5
        assert np.abs(decoded).max() < 1.5
