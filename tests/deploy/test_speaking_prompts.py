"""Prompts out of data files: every format's voices and texts, bad rows refused by line before anything is spoken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
soundfile = pytest.importorskip("soundfile")

from click.testing import CliRunner  # noqa: E402

from higgsc.cli.generate import command  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.formats.turns import REQUEST  # noqa: E402
from higgsc.data.layout import DEFAULT_SYSTEM  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.prompts import read_prompts  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402

CLIP = Path(__file__).parents[2] / "specs/data/quickstart/audio/huda-01.flac"
SAID, SAY = "hello there", "كيف حالك؟"
MODEL = ("--model", "builtin:tiny", "--audio-tokenizer", "builtin:tiny", "--max-seconds", "0.4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a second of speech in it, as `voice.wav`; the working directory is elsewhere."""
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "voice.wav", read_mono(CLIP, max_seconds=30)[:24_000], 24_000)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def audio(name: str = "voice.wav", **more: Any) -> dict[str, Any]:
    return {"type": "audio", "audio_url": name, **more}


def cloned(text: str = SAY, *, said: str = SAID, reference: Any = None, **row: Any) -> dict[str, Any]:
    """Three turns, as the users' scripts write them; no target audio."""
    asked = [{"type": "text", "text": said}, reference or audio(), {"type": "text", "text": f"{REQUEST}{text}"}]
    return {"messages": [{"role": "user", "content": asked}], **row}


def turns(*contents: Any, **row: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": one} for role, one in zip(roles, contents, strict=False)], **row}


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


@pytest.mark.parametrize(
    "row, form",
    [
        (cloned(), "chatml"),
        (turns(SAID, [audio()], SAY), "chatml"),
        (turns(SAID, [audio()], f"{REQUEST} {SAY}", [audio("gone.wav")]), "chatml"),
        ({"reference_audio": "voice.wav", "reference_text": SAID, "target_text": SAY}, "paired"),
        (turns([{"type": "text", "text": SAID}, audio(), {"type": "text", "text": SAY}]), "mixed"),
        (
            {"id": "x", "target": {"text": SAY}, "references": [{"text": SAID, "audio": {"path": "voice.wav"}}]},
            "canonical",
        ),
    ],
    ids=["three turns", "five turns", "with target audio", "paired", "mixed", "canonical"],
)
def test_each_format_says_whose_voice_and_what(folder: Path, row: dict[str, Any], form: str) -> None:
    """Relative to the data file, wherever one stands; a recording of the target need not be there."""
    file = write(folder / "prompts.jsonl", row)
    (one,) = read_prompts(file)
    assert (one.reference.path, one.reference_text, one.text) == (folder / "voice.wav", SAID, SAY)
    assert (one.system, one.scene, one.line) == (DEFAULT_SYSTEM, None, 1)
    assert read_prompts(file, form) == [one]


def test_each_prompt_is_spoken_in_its_own_voice_and_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's files are what the class says of the same prompts; an array is read as well as lines."""
    part = audio(offset=0.0, duration=0.6)
    scene = [{"role": "system", "content": "Speak."}, {"role": "scene", "content": "A quiet room."}]
    rows = [cloned(id="a/1"), cloned(id="b", reference=part), cloned(id="c")]
    rows[2]["messages"] = scene + rows[2]["messages"]
    file = folder / "prompts.json"
    file.write_text(json.dumps(rows))
    encoded = []
    voice_of = Speaker.voice
    monkeypatch.setattr(Speaker, "voice", lambda self, *of: encoded.append(of) or voice_of(self, *of))
    result = CliRunner().invoke(command, [*MODEL, "--prompts", str(file), "-o", "out", "--temperature", "0"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").iterdir()) == ["a_1.wav", "b.wav", "c.wav"]
    assert "out/a_1.wav: 0." in result.output
    assert len(encoded) == 2  # of three prompts, two have the same recording
    prompts = read_prompts(file)
    assert [(one.id, one.reference.duration, one.system, one.scene) for one in prompts] == [
        ("a/1", None, DEFAULT_SYSTEM, None),
        ("b", 0.6, DEFAULT_SYSTEM, None),
        ("c", None, "Speak.", "A quiet room."),
    ]
    # The prompts go to the model as they are written: its inputs are those of the layout with scene and system text.
    speaker = Speaker.load("builtin:tiny", "builtin:tiny")
    seen: list[int] = []
    respond = Speaker.respond
    monkeypatch.setattr(
        Speaker,
        "respond",
        lambda self, prefix, *rest, **more: seen.append(len(prefix)) or respond(self, prefix, *rest, **more),
    )
    for one, name in zip(prompts, ("a_1", "b", "c"), strict=True):
        voice = speaker.voice(one.reference, one.reference_text)
        setting: Any = {"system": one.system, "scene": one.scene}
        speech = speaker.speak(voice, one.text, sampling=Sampling(temperature=0), max_seconds=0.4, **setting)
        assert np.abs(soundfile.read(f"out/{name}.wav")[0] - speech.wave).max() < 1e-4
    lengths = [
        len(
            speaker._layout.segments(
                system=one.system, scene=one.scene, reference_text=f"{SAID}.", target_text=SAY
            ).prefix
        )
        for one in prompts
    ]
    assert seen == lengths
    assert lengths[0] != lengths[2]


def test_bad_rows_are_named_together_before_anything_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speaker, "load", lambda *_, **__: pytest.fail("loaded"))
    soundfile.write(folder / "silence.wav", [0.0] * 24_000, 24_000)
    (folder / "noise.wav").write_bytes(b"no audio")
    rows = [
        cloned(id="fine"),
        cloned(id="gone", reference=audio("gone.wav")),
        cloned(id="silence", reference=audio("silence.wav")),
        cloned(id="noise", reference=audio("noise.wav")),
        cloned(id="short", reference=audio(offset=0.0, duration=0.2)),
        cloned(id="away", reference=audio("/etc/hostname")),
        cloned("...", id="empty"),
        cloned("not <|eot_id|> this", id="control"),
        turns("no reference", id="alone"),
        turns(SAID, [audio()], SAID, [audio()], SAY, id="two"),
        {"messages": [{"role": "system", "content": "x"}], "id": "nothing"},
        cloned(id="fine"),
        {"messages": "none", "id": "late"},
    ]
    file = write(folder / "prompts.jsonl", *rows)
    result = CliRunner().invoke(command, [*MODEL, "--prompts", str(file), "-o", "out"])
    assert isinstance(result.exception, StepError)
    error = result.exception
    assert (error.code, error.path) == (ExitCode.BAD_DATA, file)
    assert error.message.startswith("12 of 13 prompts cannot be spoken\n")
    told = dict(line.strip().removeprefix(f"{file}:").split(": ", 1) for line in error.message.splitlines()[1:-1])
    for line, word in {
        "2": "gone: reference audio gone.wav: the file does not exist",
        "3": "silence: reference audio silence.wav: the reference is silent",
        "4": "not audio that can be read",
        "5": "lasts 0.20 s",
        "6": "lies outside",
        "7": "empty: text: nothing to say",
        "8": "control token",
        "9": "no references",
        "10": "two: 2 references",
        "11": "unknown order of turns",
    }.items():
        assert word in told[line], (line, told)
    assert error.message.endswith("\n  and 2 more")
    assert not Path("out").exists()
    # The last two by themselves.
    with pytest.raises(StepError, match=r"prompts.jsonl:2: fine: fine.wav would be its file and that .* at line 1"):
        read_prompts(write(file, cloned(id="fine"), cloned(id="fine")))
    with pytest.raises(StepError, match=r"late: `messages` is a list"):
        read_prompts(write(file, cloned(), {"messages": "none", "id": "late"}), "chatml")


def test_what_does_not_go_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speaker, "load", lambda *_, **__: pytest.fail("loaded"))
    file = str(write(folder / "prompts.jsonl", cloned(id="a")))
    for arguments, word in (
        (("--prompts", file, "--text", "a"), "one of --text, --file and --prompts"),
        (("--prompts", file, "--reference-text", "a"), "leave --reference-text out"),
        (("--text", "a"), "--reference and --reference-text"),
        (("--text", "a", "--reference", "r", "--reference-text", "a", "--format", "chatml"), "that of --prompts"),
        (("--prompts", file, "--format", "none"), "none"),
    ):
        result = CliRunner().invoke(command, [*MODEL, *arguments, "-o", "out"])
        assert (result.exit_code, word in result.output) == (2, True), result.output
    Path("out").mkdir()
    Path("out/a.wav").write_text("")
    result = CliRunner().invoke(command, [*MODEL, "--prompts", file, "-o", "out"])
    assert isinstance(result.exception, StepError)
    assert "--force" in str(result.exception)
    with pytest.raises(StepError, match=r"cannot be read|does not exist") as raised:
        read_prompts(folder / "none.jsonl")
    assert raised.value.code == ExitCode.MISSING_INPUT
