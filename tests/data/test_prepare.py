"""The prepare step: real speech to a store, the same every time, and nothing half done or passed over in silence."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import soundfile  # noqa: E402

from higgsc.contract.heartbeat import read_heartbeat  # noqa: E402
from higgsc.contract.jobs import ModelRef, StepContext  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.codec import Codec  # noqa: E402
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout  # noqa: E402
from higgsc.data.prepare import run  # noqa: E402
from higgsc.train.model.builtin import tiny_path  # noqa: E402
from tests.data.rows import sample  # noqa: E402


def target_audio(value: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = value["messages"][2]["content"][1]
    return part


def test_the_quickstarts_speech_is_prepared(quickstart: Any) -> None:
    store = quickstart.store()
    raw = json.loads((quickstart.root / "data" / "train_chatml.json").read_text("utf-8"))
    assert len(store) == len(raw) == 32
    assert store.counts["clips"] == 32, "each clip is the target of one sample and the reference of another"
    assert store.counts["rejected"] == 0
    assert len(store.validation) == 3
    assert sorted([*store.train, *store.validation]) == list(range(32))
    codec = Codec.load(tiny_path("audio_tokenizer"), device="cpu")
    layout = ChatLayout.load("builtin:tiny")
    assert store.made_by["codec"] == codec.fingerprint
    for number in (0, 17, 31):
        value, stored, record = raw[number], store.sample(number), store.record(number)
        assert stored.id == value["misc"]["sample_id"]
        assert stored.speaker == value["speaker"]
        target = quickstart.root / "data" / target_audio(value)["audio_url"]
        np.testing.assert_array_equal(stored.target, codec.encode(read_mono(target, max_seconds=30)))
        assert len(stored.target) == store.target_frames[number] == -(-soundfile.info(target).frames // 960)
        segments = layout.segments(
            system=DEFAULT_SYSTEM,
            scene=None,
            reference_text=value["misc"]["ref_transcript"],
            target_text=value["misc"]["target_transcript"],
        )
        np.testing.assert_array_equal(stored.prefix, segments.prefix)
        np.testing.assert_array_equal(stored.middle, segments.middle)
        np.testing.assert_array_equal(stored.suffix, segments.suffix)
        assert record["target_audio"] == {"path": f"data/{target_audio(value)['audio_url']}"}
        assert record["source"] == "data/train_chatml.json"
        assert f'"{DEFAULT_SYSTEM}"' in "".join(
            (quickstart.root / record["source"]).read_text("utf-8").splitlines()[record["line"] - 1 :][:5]
        )
        # The reference is the target of another sample, so its codes are too.
        other = next(index for index in range(32) if store.record(index)["target_audio"] == record["reference_audio"])
        np.testing.assert_array_equal(stored.reference, store.sample(other).target)


def test_the_result_names_what_was_read_and_written(filled: Any) -> None:
    filled.write([sample("one"), sample("two", "audio/b.wav", "audio/a.wav")])
    result = filled.prepare()
    data = filled.root / "data"
    assert result.summary == "2 samples encoded, 0 rejected"
    assert result.inputs == (data / "train.json", data / "audio" / "a.wav", data / "audio" / "b.wav")
    assert result.outputs == (filled.root / "runs/test/store",)
    assert result.figures["clips"] == 2
    assert result.figures["frames"] == 30
    heartbeat = read_heartbeat(filled.root / "runs/test")
    assert heartbeat is not None
    assert (heartbeat.step, heartbeat.done, heartbeat.total, heartbeat.unit) == ("prepare", 2, 2, "samples")


def test_twice_gives_the_same_bytes_from_anywhere(
    filled: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.write([sample(str(number)) for number in range(4)])
    filled.prepare(validation_fraction=0.5)
    first = filled.contents()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    filled.prepare(validation_fraction=0.5)
    assert filled.contents() == first
    assert str(filled.root).encode() not in b"".join(first.values())


def test_several_files_in_several_layouts(filled: Any) -> None:
    filled.write([sample("one")])
    lines = filled.root / "more" / "five.jsonl"
    lines.parent.mkdir()
    turns = [
        {"role": "user", "content": "ref"},
        {"role": "assistant", "content": {"type": "audio", "audio_url": "../data/audio/a.wav"}},
        {"role": "user", "content": "  a\u200b\ttarget "},
        {"role": "assistant", "content": {"type": "audio", "audio_url": "../data/audio/b.wav"}},
    ]
    lines.write_text(json.dumps({"messages": turns}) + "\n")
    filled.prepare("data/train.json", "more/five.jsonl")
    store = filled.store()
    assert [store.record(number)["id"] for number in range(2)] == ["one", "more.five-000000"]
    assert store.record(1)["target_text"] == "a target."
    assert store.counts["clips"] == 2
    assert store.speakers == ["speaker_001", ""]


def test_parts_of_one_recording_are_clips_of_their_own(filled: Any) -> None:
    filled.audio("long.wav", 3.0)
    value = sample("one", "audio/long.wav", "audio/long.wav")
    value["messages"][1]["content"][1].update(offset=0, duration=1)
    target_audio(value).update(offset=1, duration=2)
    filled.write([value])
    filled.prepare()
    store = filled.store()
    assert (len(store.sample(0).reference), len(store.sample(0).target)) == (25, 50)
    assert store.record(0)["target_audio"] == {"path": "data/audio/long.wav", "offset": 1.0, "duration": 2.0}


def spoil_audio(project: Any, value: dict[str, Any], **changes: Any) -> None:
    """Make a sample's target the recording `spoiled.wav`, which `changes` describe."""
    target_audio(value)["audio_url"] = project.audio("spoiled.wav", changes.pop("seconds", 0.6))
    target_audio(value).update(changes)


def write_bytes(project: Any, value: dict[str, Any], content: bytes) -> None:
    (project.root / "data" / "audio" / "spoiled.wav").write_bytes(content)
    target_audio(value)["audio_url"] = "audio/spoiled.wav"


def write_wave(project: Any, value: dict[str, Any], wave: np.ndarray) -> None:
    soundfile.write(project.root / "data" / "audio" / "spoiled.wav", wave, 24_000, subtype="FLOAT")
    target_audio(value)["audio_url"] = "audio/spoiled.wav"


def set_text(value: dict[str, Any], turn: int, text: str) -> None:
    value["messages"][turn]["content"][0]["text"] = text


SPOILED = "target audio data/audio/spoiled.wav: "
SPOILS: dict[str, tuple[Any, str]] = {
    "no target": (lambda p, v: v["messages"].pop(), "no target audio: this is a prompt to generate from"),
    "outside": (
        lambda p, v: target_audio(v).update(audio_url="../../../x.wav"),
        "audio '../../../x.wav' lies outside",
    ),
    "empty text": (lambda p, v: set_text(v, 1, "\u200f"), "reference text: the text is empty"),
    "punctuation": (lambda p, v: set_text(v, 2, "؟!"), "target text: nothing to say in the text '؟!'"),
    "surrogate": (lambda p, v: set_text(v, 2, "a\udc00"), "the target text holds half of a surrogate pair"),
    "control token": (
        lambda p, v: set_text(v, 2, "a <|eot_id|>"),
        "target text: the text holds the control token <|eot_id|>",
    ),
    "hidden token": (
        lambda p, v: set_text(v, 1, "a <|AUDIO\u200b_OUT|>"),
        "reference text: the text holds the control token <|AUDIO_OUT|>",
    ),
    "same id": (lambda p, v: v["misc"].update(sample_id="zero"), "the id was used before, at data/train.json:2"),
    "missing": (
        lambda p, v: target_audio(v).update(audio_url="audio/none.wav"),
        "target audio data/audio/none.wav: the file does not exist",
    ),
    "missing reference": (
        lambda p, v: v["messages"][1]["content"][1].update(audio_url="none.wav"),
        "reference audio data/none.wav: the file does not exist",
    ),
    "no audio": (lambda p, v: write_bytes(p, v, b"<html>"), SPOILED + "not audio that can be read"),
    "empty": (lambda p, v: write_wave(p, v, np.zeros(0)), SPOILED + "the audio is empty"),
    "not finite": (
        lambda p, v: write_wave(p, v, np.full(9_600, np.inf)),
        SPOILED + "the audio holds values that are not",
    ),
    "silent": (lambda p, v: write_wave(p, v, np.zeros(24_000)), SPOILED + "the audio is silent from start to end"),
    "short": (lambda p, v: spoil_audio(p, v, seconds=0.1), SPOILED + "the audio lasts 0.10 s, less than 0.2 s"),
    "long": (lambda p, v: spoil_audio(p, v, seconds=1.5), SPOILED + "the audio lasts more than 1.2 s"),
    "declared": (
        lambda p, v: spoil_audio(p, v, duration=9),
        SPOILED + "the audio lasts 0.60 s and not 9 s as the data says",
    ),
    "offset": (lambda p, v: spoil_audio(p, v, offset=9), SPOILED + "the audio ends before the offset of 9 s"),
    "part": (
        lambda p, v: spoil_audio(p, v, offset=0.3, duration=1),
        SPOILED + "the audio ends after 0.30 s, where 1.00 s were announced",
    ),
}


@pytest.mark.parametrize("kind", SPOILS)
def test_a_bad_sample_is_left_out_with_reason_file_and_line(
    filled: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    spoil, reason = SPOILS[kind]
    good, bad, last = sample("zero"), sample("bad"), sample("last")
    spoil(filled, bad)
    filled.write([good, bad, last])
    bad_line = 2 + json.dumps([good], indent=2).count("\n") - 1

    result = filled.prepare(limits={"max_bad_fraction": 0.5, "max_seconds": 1.2})
    assert result.summary == "2 samples encoded, 1 rejected"
    store = filled.store()
    assert [store.record(number)["id"] for number in range(len(store))] == ["zero", "last"]
    assert store.counts["clips"] == 2, "a sample that is left out leaves no clips"
    (rejected,) = map(json.loads, (filled.root / "runs/test/store/rejected.jsonl").read_text("utf-8").splitlines())
    assert rejected["reason"].startswith(reason)
    assert (rejected["source"], rejected["line"]) == ("data/train.json", bad_line)
    assert f"data/train.json:{bad_line}: {rejected['id']}: {rejected['reason']}" in caplog.text

    # The same sample ends the step when none may be bad.
    with pytest.raises(StepError) as caught:
        filled.prepare(limits={"max_bad_fraction": 0.3, "max_seconds": 1.2})
    assert caught.value.code == ExitCode.BAD_DATA
    assert f"1 of 3 samples are bad, above the limit of 30.00%\n  data/train.json:{bad_line}: " in str(caught.value)
    assert rejected["reason"] in str(caught.value)


def test_too_many_bad_samples_stop_the_step_with_the_first_causes(filled: Any) -> None:
    filled.write([sample(str(number), target=f"audio/none-{number}.wav") for number in range(8)] + [sample("good")])
    with pytest.raises(StepError) as caught:
        filled.prepare(limits={"max_bad_fraction": 0.5})
    text = str(caught.value)
    assert text.startswith("8 of 9 samples are bad, above the limit of 50.00%")
    assert text.count("the file does not exist") == 5
    assert "and 3 more" in text
    assert "raise `data.limits.max_bad_fraction`" in text
    listed = (filled.root / "runs/test/rejected.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in listed] == [str(number) for number in range(8)]
    assert "runs/test/rejected.jsonl" in text
    assert not (filled.root / "runs/test/store").exists()

    # Mended, the step goes through, and the list of what was wrong is gone.
    filled.write([sample(str(number)) for number in range(8)])
    filled.prepare()
    assert not (filled.root / "runs/test/rejected.jsonl").exists()


def test_rejected_samples_are_listed_in_the_order_of_the_data(filled: Any) -> None:
    """Whenever each of them was found out: bad text and missing files show before bad audio does."""
    bad = [sample("audio", target=filled.audio("short.wav", 0.1)), sample("text"), sample("audio again")]
    set_text(bad[1], 2, "?")
    target_audio(bad[2])["audio_url"] = "audio/short.wav"
    filled.write([*bad, sample("good"), sample("better")])
    filled.prepare(limits={"max_bad_fraction": 0.6})
    listed = (filled.root / "runs/test/store/rejected.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in listed] == ["audio", "text", "audio again"]


def test_bad_audio_stops_the_step_as_soon_as_it_is_too_much(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the hours that it takes to encode the rest."""
    filled.audio("short.wav", 0.1)
    filled.write(
        [sample("bad", target="audio/short.wav")]
        + [sample(str(number), target=filled.audio(f"{number}.wav")) for number in range(5)]
    )
    encoded = []
    encode = Codec.encode

    def counted(self: Codec, wave: np.ndarray) -> np.ndarray:
        encoded.append(len(wave))
        return encode(self, wave)

    monkeypatch.setattr(Codec, "encode", counted)
    with pytest.raises(StepError, match="1 of 6 samples are bad"):
        filled.prepare(limits={"max_bad_fraction": 0.1}, workers=1)
    assert len(encoded) == 1, "the reference of the bad sample comes before its target"
    assert not (filled.root / "runs/test/store").exists()


def test_all_samples_bad_is_never_allowed(filled: Any) -> None:
    filled.write([sample(target="audio/none.wav")])
    with pytest.raises(StepError, match="1 of 1 samples are bad"):
        filled.prepare(limits={"max_bad_fraction": 1.0})


def test_a_missing_data_file(filled: Any) -> None:
    filled.write([sample()])
    with pytest.raises(StepError, match="the data file does not exist") as caught:
        filled.prepare("data/train.json", "data/more.json")
    assert caught.value.code == 66
    assert caught.value.path == filled.root / "data/more.json"
    assert not (filled.root / "runs/test/store").exists()


@pytest.mark.parametrize("part", ["base", "audio_tokenizer"])
def test_a_missing_checkpoint(filled: Any, part: str) -> None:
    filled.write([sample()])
    names = {"base": "builtin:tiny", "audio_tokenizer": "builtin:tiny", part: "/models/none"}
    model = ModelRef(revision=None, audio_tokenizer_revision=None, **names)
    with pytest.raises(StepError, match=r"cannot load the .*tokenizer.* `?/models/none") as caught:
        filled.prepare(model=model)
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert not (filled.root / "runs/test/store").exists()


def test_a_codec_of_another_kind_is_refused(filled: Any) -> None:
    filled.write([sample()])
    model = ModelRef(
        base="builtin:tiny", revision=None, audio_tokenizer=str(tiny_path("model")), audio_tokenizer_revision=None
    )
    with pytest.raises(StepError, match="cannot use the audio tokenizer"):
        filled.prepare(model=model)


def test_checkpoints_are_found_below_the_project(filled: Any) -> None:
    (filled.root / "models").mkdir()
    (filled.root / "models" / "base").symlink_to(tiny_path("model"))
    (filled.root / "models" / "codec").symlink_to(tiny_path("audio_tokenizer"))
    filled.write([sample()])
    model = ModelRef(base="models/base", revision=None, audio_tokenizer="models/codec", audio_tokenizer_revision=None)
    assert filled.prepare(model=model).summary == "1 samples encoded, 0 rejected"


def test_prepare_is_one_process(filled: Any) -> None:
    context = StepContext(job_path=filled.root / "job.json", root=filled.root, rank=0, world_size=2)
    with pytest.raises(StepError, match="one process, not as 2"):
        run(filled.job(), context)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(filled: Any) -> None:
    with pytest.raises(StepError, match="asks for a GPU") as caught:
        filled.prepare(device="cuda")
    assert caught.value.code == ExitCode.MISSING_INPUT


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_error_while_encoding_leaves_no_half_store(
    filled: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    filled.write([sample("one"), sample("two", "audio/b.wav", filled.audio("c.wav", seed=3))])
    calls = iter([None, None, error])
    encode = Codec.encode

    def third_fails(self: Codec, wave: np.ndarray) -> np.ndarray:
        if failure := next(calls):
            raise failure
        return encode(self, wave)

    monkeypatch.setattr(Codec, "encode", third_fails)
    with pytest.raises(type(error)):
        filled.prepare()
    assert sorted(path.name for path in (filled.root / "runs/test").iterdir()) == [".store.lock", "heartbeat.json"]


def test_a_clean_run_takes_seconds(filled: Any) -> None:
    """Encoding is what takes time: a thousand samples of the same two clips are encoded as two."""
    filled.write([sample(str(number)) for number in range(1_000)])
    started = time.monotonic()
    filled.prepare()
    assert filled.store().counts["clips"] == 2
    assert time.monotonic() - started < 15
