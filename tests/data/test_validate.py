"""Validation: each thing that is wrong with a recording or a row is found and named, and good data passes."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")

from click.testing import CliRunner  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from higgsc.cli.data import command  # noqa: E402
from higgsc.contract.jobs import DataLimits  # noqa: E402
from higgsc.data.inspect import inspect  # noqa: E402
from higgsc.data.probe import probe  # noqa: E402
from higgsc.data.records import AudioSpan  # noqa: E402
from higgsc.data.report import as_json, render_text  # noqa: E402
from higgsc.data.samples import SourceFile  # noqa: E402
from higgsc.data.validate import Report, Request, validate  # noqa: E402

LIMITS = DataLimits(min_seconds=0.5, max_seconds=30, max_bad_fraction=0.0)
RATE = 24_000


def speech(seconds: float = 1.0, *, seed: int = 0, rate: int = RATE, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * rate)).clip(-1, 1).astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    soundfile.write(path, wave, rate, **options)
    return path


def sample(name: str, target: str, *, text: str = "ما يقال هنا", speaker: str = "noor", **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "speaker": speaker,
        "references": [{"text": "مرجع", "audio": {"path": "reference.wav"}}],
        "target": {"text": text, "audio": {"path": target, **more}},
    }


def run(folder: Path, *samples: Any, **options: Any) -> Report:
    write(folder / "reference.wav", speech(seed=99))
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in samples), "utf-8")
    return validate(Request(sources=(SourceFile(path=path),), root=folder, limits=LIMITS, **options))


def header_of_ten_hours(path: Path) -> None:
    data = np.zeros(RATE, dtype="<i2").tobytes()
    size = 10 * 3600 * RATE * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    path.write_bytes(b"RIFF" + struct.pack("<I", size + 36) + b"WAVE" + form + b"data" + struct.pack("<I", size) + data)


def truncated(path: Path) -> None:
    write(path, speech(2), subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:50_000])


def truncated_flac(path: Path) -> None:
    write(path, speech(2), format="FLAC")
    path.write_bytes(path.read_bytes()[:40_000])


def with_value(value: float) -> Any:
    def make(path: Path) -> None:
        wave = speech()
        wave[12_345] = value
        write(path, wave, subtype="FLOAT")

    return make


def link_out(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.parent.name}.wav"
    write(outside, speech())
    path.symlink_to(outside)


ERRORS: dict[str, tuple[Any, str, bool]] = {
    "zero bytes": (lambda path: path.touch(), "the file is empty", True),
    "truncated": (truncated, "cut short: the header claims 2.00 s, the file holds 1.04 s", True),
    "truncated flac": (truncated_flac, "cut short|not audio that can be read", False),
    "one sample": (lambda path: write(path, speech(1 / RATE)), "lasts 0.00 s, less than 0.5 s", True),
    "nan": (with_value(np.nan), "values that are not finite", False),
    "infinite": (with_value(np.inf), "values that are not finite", False),
    "ten hours": (header_of_ten_hours, "cut short: the header claims 36000.00 s, the file holds 1.00 s", True),
    "too long": (lambda path: write(path, speech(31)), "lasts more than 30 s", True),
    "silent": (lambda path: write(path, speech() * 0), "silent from start to end", False),
    "pipe": (os.mkfifo, "is a pipe, not a file", True),
    "folder": (Path.mkdir, "is a folder, not a file", True),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a link leads out", True),
    "link out": (link_out, "a link leads out of the data's folders", True),
    "link to nothing": (lambda path: path.symlink_to("nothing.wav"), "the link leads nowhere", True),
    "link to itself": (lambda path: path.symlink_to(path.name), "loop|levels of symbolic links|leads nowhere", True),
    "missing": (lambda path: None, "the file does not exist", True),
    "no audio": (lambda path: path.write_text("hello"), "not audio that can be read", True),
    "4 kHz": (lambda path: write(path, speech(rate=4_000), 4_000), "a sample rate of 4000 Hz", True),
}


@pytest.mark.parametrize("fast", [False, True], ids=["full", "fast"])
@pytest.mark.parametrize("name", ERRORS)
def test_a_recording_that_cannot_be_used(tmp_path: Path, name: str, fast: bool) -> None:
    make, complaint, in_header = ERRORS[name]
    make(tmp_path / "target.wav")
    write(tmp_path / "good.wav", speech(seed=1))
    depth = "headers" if fast else "full"
    report = run(tmp_path, sample("good", "good.wav"), sample("bad", "target.wav"), depth=depth)
    if fast and not in_header:
        assert report.bad == 0
        return
    assert report.bad == 1
    (problem,) = report.errors.values()
    assert re.search(complaint, problem.examples[0]), problem.examples
    assert f"{tmp_path / 'data.jsonl'}:2: bad: target audio: " in problem.examples[0]
    assert not report.passed
    assert [recording.id for recording in report.recordings] == ["good"]


WARNINGS: dict[str, tuple[Any, str]] = {
    "8 kHz": (lambda path: write(path, speech(rate=8_000), 8_000), "narrow band"),
    "7 channels": (lambda path: write(path, np.stack([speech()] * 7, axis=1)), "more than two channels"),
    "mp3 named wav": (lambda path: write(path, speech(), format="MP3"), "MP3 named .wav"),
    "clipping": (lambda path: write(path, (speech(level=1) * 2).clip(-1, 1)), "clipping"),
    "silence": (lambda path: write(path, np.concatenate((speech(0.3), np.zeros(RATE)))), "mostly silent"),
    "quiet": (lambda path: write(path, speech(level=0.003)), "very quiet"),
    "loud": (lambda path: write(path, speech(level=0.3)), "very loud"),
    "offset": (lambda path: write(path, speech() + 0.1), "offset from zero"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_a_recording_that_is_odd(tmp_path: Path, name: str) -> None:
    make, kind = WARNINGS[name]
    make(tmp_path / "target.wav")
    write(tmp_path / "good.wav", speech(seed=1))
    report = run(tmp_path, sample("good", "good.wav"), sample("odd", "target.wav"))
    assert not report.errors
    assert report.passed
    assert kind in report.warnings
    assert report.warnings[kind].count == 1
    assert ":2: odd: target.wav" in report.warnings[kind].examples[0]


ROWS: dict[str, tuple[Any, str]] = {
    "offset": (sample("bad", "a.wav", offset=5.0, duration=1.0), "ends before the offset of 5 s"),
    "part too long": (sample("bad", "a.wav", offset=0.5, duration=2.0), "ends after 0.50 s, where 2.00 s"),
    "duration": (sample("bad", "a.wav", duration=9.0), "lasts 1.00 s and not 9 s as the data says"),
    "empty text": (sample("bad", "a.wav", text=" \u200f"), "the text is empty"),
    "100 kB": (sample("bad", "a.wav", text="كلمة " * 20_000), "a text of 100000 characters"),
    "control token": (sample("bad", "a.wav", text="x <|eot_id|>"), "holds the control token <|eot_id|>"),
    "hidden token": (sample("bad", "a.wav", text="x <|eot\u200b_id|>"), "holds the control token <|eot_id|>"),
    "leads out": (sample("bad", "../../x.wav"), "lies outside"),
    "url": (sample("bad", "https://x.org/a.wav"), "is a URL"),
    "prompt": (sample("bad", "a.wav") | {"target": {"text": "x"}}, "no target audio: this is a prompt"),
    "no reference": (sample("bad", "a.wav") | {"references": []}, "no reference: recordings of one speaker"),
    "broken": ('{"id": "bad", ', "no JSON object on this line"),
    "twice": (sample("good", "a.wav"), "the id was used before"),
    "no assistant": ({"messages": [{"role": "user", "content": "x"}]}, "the row looks like chatml"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    row, complaint = ROWS[name]
    write(tmp_path / "a.wav", speech())
    report = run(tmp_path, sample("good", "a.wav"), row)
    assert report.bad == 1
    (problem,) = report.errors.values()
    assert complaint in problem.examples[0]
    assert problem.examples[0].startswith(f"{tmp_path / 'data.jsonl'}:2: ")


def test_messages_without_an_assistant(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]}
    report = run(tmp_path, row, depth="rows")
    assert list(report.errors) == ["no target audio: this is a prompt to generate from, not a sample to learn from"]
    assert not report.passed


@pytest.mark.parametrize(
    "seconds, gain, lufs", [(3.0, 1.0, -23.0), (1.5, 0.1, -43.0), (0.3, 1.0, None), (1.0, 0.0, None)]
)
def test_loudness_is_that_of_the_standard(tmp_path: Path, seconds: float, gain: float, lufs: float | None) -> None:
    """EBU Tech 3341: a sine of 1 kHz in one channel has the loudness of its mean square, 3 dB below its peak."""
    times = np.arange(round(seconds * 48_000)) / 48_000
    sine = np.sin(2 * np.pi * 1_000 * times) * 10 ** (-20 / 20) * gain
    path = write(tmp_path / "a.wav", sine, 48_000, subtype="FLOAT")
    loudness = inspect(
        AudioSpan(path), (tmp_path,), DataLimits(min_seconds=0.1, max_seconds=30, max_bad_fraction=0), fast=False
    ).loudness
    assert loudness == (None if lufs is None else pytest.approx(lufs, abs=0.1))


def test_a_split_by_speaker_leaks_what_two_speakers_share(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"{number}.wav", speech(seed=number % 2))
    rows = [sample(f"s{n}", f"{n}.wav") | {"speaker": f"speaker {n // 2}"} for n in range(4)]
    report = run(tmp_path, *rows, validation_fraction=0.5, validation_by="speaker")
    assert report.warnings["held out and trained on"].count == 2
    rows = [row | {"speaker": "the only one"} for row in rows]
    report = run(tmp_path, *rows, validation_fraction=0.5, validation_by="speaker")
    assert "no speaker can be held out" in report.warnings["nothing can be held out"].examples[0]


def test_a_file_that_unpacks_to_hours_costs_no_more_than_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.zeros(1200 * RATE, dtype=np.int16))
    assert path.stat().st_size < 500_000
    started = time.process_time()
    finding = inspect(AudioSpan(path), (tmp_path,), LIMITS, fast=False)
    assert finding.errors == ("lasts more than 30 s",)
    assert time.process_time() - started < 0.5


def test_the_same_audio_twice_and_held_out_samples_that_are_trained_on(tmp_path: Path) -> None:
    wave = (speech(seed=5) * 32_767).astype(np.int16)
    write(tmp_path / "a.wav", wave, subtype="PCM_16")
    write(tmp_path / "b.flac", wave, subtype="PCM_16")
    rows = [sample(f"s{number}", ("a.wav", "b.flac")[number % 2]) for number in range(10)]
    report = run(tmp_path, *rows, validation_fraction=0.2, seed=1)
    assert report.warnings["the same audio twice"].count == 9
    assert report.warnings["held out and trained on"].count == 2
    for number in range(10):
        write(tmp_path / f"{number}.wav", speech(seed=number))
    report = run(tmp_path, *(sample(f"s{n}", f"{n}.wav") for n in range(10)), validation_fraction=0.2, seed=1)
    assert not report.warnings


def test_a_text_that_cannot_be_what_is_said(tmp_path: Path) -> None:
    rows = []
    for number in range(30):
        write(tmp_path / f"{number}.wav", speech(1 + number / 30, seed=number))
        rows.append(sample(f"s{number}", f"{number}.wav", text="حرف " * (3 + number % 3 + 6 * (number == 7))))
    report = run(tmp_path, *rows)
    assert report.warnings["characters per second"].count == 1
    assert ":8: s7:" in report.warnings["characters per second"].examples[0]


def test_a_request_for_another_text_than_the_transcript(tmp_path: Path) -> None:
    """The transcript is what is learned; where the request asks for something else, one of the two is wrong."""
    request = "Please generate speech for given text in reference audio's voice: "
    heard = [{"type": "text", "text": "مرجع"}, {"type": "audio", "audio_url": "reference.wav"}]
    rows = []
    for number, asked in enumerate([f"{request}said: all", f"{request}said", "Speak with joy: said: all", "said: all"]):
        said = [{"type": "text", "text": "said: all"}, {"type": "audio", "audio_url": f"{number}.wav"}]
        user = {"role": "user", "content": [*heard, {"type": "text", "text": asked}]}
        rows.append({"id": f"s{number}", "messages": [user, {"role": "assistant", "content": said}]})
        write(tmp_path / f"{number}.wav", speech(seed=number))
    report = run(tmp_path, *rows)
    assert report.passed
    assert [recording.text for recording in report.recordings] == ["said: all"] * 4
    problem = report.warnings["request unlike the transcript"]
    assert problem.examples == [f"{tmp_path / 'data.jsonl'}:2: s1: asks for {f'{request}said'!r}"]


def test_one_row_too_many_fails_and_processes_agree(tmp_path: Path) -> None:
    for number in range(70):
        write(tmp_path / f"{number}.wav", speech(0.6, seed=number))
    rows = [sample(f"s{number}", f"{number}.wav") for number in range(71)]
    calls: list[tuple[int, int]] = []
    alone = run(tmp_path, *rows)
    path = tmp_path / "data.jsonl"
    request = Request(sources=(SourceFile(path=path),), root=tmp_path, limits=LIMITS, workers=2)
    together = validate(request, lambda done, total: calls.append((done, total)))
    assert as_json(together) == as_json(alone)
    assert calls[-1] == (72, 72)
    assert not alone.passed
    assert alone.bad == 1


@settings(deadline=None)  # files on a busy disk
@given(st.sampled_from([8_000, 16_000, 24_000, 44_100]), st.integers(1, 7), st.integers(1, 3_000), st.data())
def test_a_header_is_what_libsndfile_says(
    tmp_path_factory: pytest.TempPathFactory, rate: int, channels: int, frames: int, data: st.DataObject
) -> None:
    kind, subtype = data.draw(
        st.sampled_from(
            [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"), ("WAVEX", "PCM_16"),
             ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16")]
        )
    )  # fmt: skip
    path = tmp_path_factory.mktemp("probe") / "a.bin"
    soundfile.write(path, np.zeros((frames, 1 if "ADPCM" in subtype else channels)), rate, subtype, format=kind)
    info, header = soundfile.info(str(path)), probe(path)
    assert (header.rate, header.channels, header.frames) == (info.samplerate, info.channels, info.frames)
    assert header.held == header.frames


@settings(deadline=None)  # files on a busy disk
@given(st.binary(max_size=80), st.sampled_from([b"", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0", b"fLaC"]))
def test_no_header_breaks_the_probe(tmp_path_factory: pytest.TempPathFactory, content: bytes, start: bytes) -> None:
    path = tmp_path_factory.mktemp("probe") / "a.wav"
    path.write_bytes(start + content)
    try:
        header = probe(path)
    except ValueError:
        return
    assert header.rate > 0
    assert header.held <= header.frames


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.wav", speech())
    good = run(tmp_path, sample("s", "a.wav"))
    monkeypatch.chdir("/")
    arguments = ["validate", str(tmp_path / "data.jsonl"), "--workers", "1"]
    result = CliRunner().invoke(command, [*arguments, "--html", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    assert render_text(good).splitlines()[0] in result.stdout
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "a.wav").unlink()
    whole = [sys.executable, "-m", "higgsc", "data", *arguments, "--json"]
    watching, terminal = os.openpty()
    result = subprocess.run(whole, stdout=subprocess.PIPE, stderr=terminal, text=True, check=False)
    os.close(terminal)
    shown = os.read(watching, 10_000).decode()
    assert result.returncode == 1, shown
    assert "recordings  [" in shown
    assert "2/2" in shown
    assert json.loads(result.stdout)["errors"]["target audio: the file does not exist"]["count"] == 1


def test_the_command_on_a_spec() -> None:
    spec = Path(__file__).resolve().parents[2] / "specs" / "quickstart.yaml"
    result = CliRunner().invoke(command, ["validate", str(spec), "--fast", "--workers", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == 32
