"""Audio files in and out: what is read is what was recorded, and what is wrong names its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono, write_wav  # noqa: E402


def tone(seconds: float, rate: int = 24_000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_24_khz_mono_is_read_as_it_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), 24_000, subtype="FLOAT")
    wave = read_mono(tmp_path / "a.wav", max_seconds=2)
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave, tone(1))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 192_000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, rate), rate, subtype="FLOAT")
    wave = read_mono(tmp_path / "a.wav", max_seconds=2)
    assert len(wave) == 24_000
    # The ends ring; in between it is the same tone.
    np.testing.assert_allclose(wave[2_000:-2_000], tone(1)[2_000:-2_000], atol=2e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(1), 3 * tone(1) / 5], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 24_000, subtype="FLOAT")
    np.testing.assert_allclose(read_mono(tmp_path / "a.wav", max_seconds=2), 0.8 * tone(1), atol=1e-6)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_compressed_files_are_read(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(1), 24_000)
    wave = read_mono(tmp_path / name, max_seconds=2)
    assert len(wave) == pytest.approx(24_000, abs=1_200)
    assert float(np.corrcoef(wave[5_000:15_000], tone(1)[5_000:15_000])[0, 1]) > 0.9


@pytest.mark.parametrize(
    "offset, duration, start, end",
    [(0.5, 0.25, 12_000, 18_000), (0.5, None, 12_000, 24_000), (None, 0.25, 0, 6_000), (0.95, 0.1, 22_800, 24_000)],
)
def test_a_part_of_a_file(tmp_path: Path, offset: float | None, duration: float | None, start: int, end: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), 24_000, subtype="FLOAT")
    wave = read_mono(tmp_path / "a.wav", offset=offset, duration=duration, max_seconds=0.6 if duration else 2)
    np.testing.assert_array_equal(wave, tone(1)[start:end])


def broken(folder: Path, kind: str) -> Path:
    """A file that cannot be used, by what is wrong with it."""
    path = folder / f"{kind}.wav"
    match kind:
        case "folder":
            path.mkdir()
        case "no_audio":
            path.write_text("<html>404</html>")
        case "no_bytes":
            path.write_bytes(b"")
        case "no_header":
            path = folder / "a.raw"
            path.write_bytes(bytes(1_000))
        case "no_samples":
            soundfile.write(path, np.zeros(0, dtype=np.float32), 24_000)
        case "not_finite":
            soundfile.write(path, np.array([0, np.nan, 0.5], dtype=np.float32), 24_000, subtype="FLOAT")
        case "low_rate":
            soundfile.write(path, tone(1, 4_000), 4_000)
        case "cut_flac":
            path = folder / "a.flac"
            soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48_000), 24_000)
            path.write_bytes(path.read_bytes()[:40_000])
        case "cut_mp3":
            path = folder / "a.mp3"
            soundfile.write(path, tone(2), 24_000)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "long":
            soundfile.write(path, tone(2.5), 24_000)
        case _:
            assert kind == "missing"
    return path


@pytest.mark.parametrize(
    "kind, complaint",
    [
        ("missing", "the audio file does not exist"),
        ("folder", "the audio file is not a file"),
        ("no_audio", "not audio that can be read: .*[Ff]ormat not recogni"),
        ("no_bytes", "not audio that can be read"),
        ("no_header", "not audio that can be read: samplerate must be specified"),
        ("no_samples", "the audio is empty"),
        ("not_finite", "values that are not finite"),
        ("low_rate", "a sample rate of 4000 Hz"),
        ("cut_flac", "not audio that can be read|the audio ends after"),
        ("cut_mp3", "the audio ends after .* s, where 2.* s were announced"),
        ("long", "the audio lasts more than 2 s"),
    ],
)
def test_an_unusable_file_is_named_with_its_problem(tmp_path: Path, kind: str, complaint: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(StepError, match=complaint) as caught:
        read_mono(path, max_seconds=2)
    assert caught.value.path == path
    missing = kind in ("missing", "folder")
    assert caught.value.code == (ExitCode.MISSING_INPUT if missing else ExitCode.BAD_DATA)


@pytest.mark.parametrize(
    "offset, duration, complaint",
    [
        (1.5, None, "ends before the offset of 1.5 s"),
        (0.5, 1.0, "ends after 0.50 s, where 1.00 s were announced"),
        (0.0, 2.5, "lasts more than 2 s"),
    ],
)
def test_a_part_that_is_not_there(tmp_path: Path, offset: float, duration: float | None, complaint: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), 24_000)
    with pytest.raises(StepError, match=complaint):
        read_mono(tmp_path / "a.wav", offset=offset, duration=duration, max_seconds=2)


def test_a_header_that_lies_about_the_length_is_not_believed(tmp_path: Path) -> None:
    """A stream's header, of unknown length, reads; the limit holds for what is in the file."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.5), 24_000)
    header = bytearray(path.read_bytes())
    header[4:8] = header[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(header)
    assert len(read_mono(path, max_seconds=2)) == 36_000
    with pytest.raises(StepError, match="lasts more than 1 s"):
        read_mono(path, max_seconds=1)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.wav"
    write_wav(path, np.concatenate([tone(1), np.array([-2, 2], dtype=np.float32)]))
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 24_000, 1)
    wave = read_mono(path, max_seconds=2)
    np.testing.assert_allclose(wave[:-2], tone(1), atol=1 / 32_768)
    np.testing.assert_allclose(wave[-2:], [-1, 1], atol=1 / 16_384)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, tone(0.1))
    before = path.read_bytes()

    def fail(stream: object, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        write_wav(path, tone(0.2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wave", [np.zeros((2, 3)), np.array([0.0, np.inf])])
def test_no_wave_is_not_written(tmp_path: Path, wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected finite samples of shape \[N\]"):
        write_wav(tmp_path / "a.wav", wave.astype(np.float32))
