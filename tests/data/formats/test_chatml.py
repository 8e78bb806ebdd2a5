"""ChatML: both layouts, every shape of content, and a reason with file and line for what is left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.formats.reading import detect, read_records
from higgsc.data.records import AudioSpan, CloningSample, Rejected
from higgsc.data.samples import SourceFile, read_samples

REQUEST = "Please generate speech for given text in reference audio's voice:"
QUICKSTART = Path(__file__).resolve().parents[3] / "specs" / "data" / "quickstart" / "train_chatml.json"


def read_chatml(path: Path, root: Path) -> list[CloningSample | Rejected]:
    return list(read_samples(SourceFile(path=path, format="chatml"), root=root))


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def audio(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "audio", "audio_url": name, **more}


def three_turns() -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Say it."},
            {"role": "user", "content": [text("ref"), audio("a.wav"), text(f"{REQUEST} target: text")]},
            {"role": "assistant", "content": [text("said"), audio("b.wav")]},
        ],
        "start_index": 0,
        "speaker": "noor",
        "misc": {"sample_id": "s-1"},
    }


def five_turns() -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Say it."},
            {"role": "user", "content": "ref"},
            {"role": "assistant", "content": audio("a.wav")},
            {"role": "user", "content": "said"},
            {"role": "assistant", "content": audio("b.wav")},
        ],
        "start_index": 3,
        "id": "s-1",
        "speaker": "noor",
    }


def read_one(folder: Path, sample: Any) -> CloningSample:
    path = folder / "data" / "train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([sample], indent=2), "utf-8")
    (one,) = read_chatml(path, folder)
    assert isinstance(one, CloningSample), one
    return one


@pytest.mark.parametrize("make", [three_turns, five_turns])
def test_both_layouts_say_the_same(tmp_path: Path, make: Any) -> None:
    assert read_one(tmp_path, make()) == CloningSample(
        id="s-1",
        speaker="noor",
        system="Say it.",
        scene=None,
        reference_text="ref",
        reference_audio=AudioSpan(tmp_path / "data" / "a.wav"),
        target_text="said",
        target_audio=AudioSpan(tmp_path / "data" / "b.wav"),
        source=tmp_path / "data" / "train.json",
        line=2,
    )


@pytest.mark.parametrize("shape", [lambda part: part, lambda part: [part], lambda part: [part["text"]]])
def test_content_is_a_string_a_part_or_a_list(tmp_path: Path, shape: Any) -> None:
    sample = five_turns()
    for turn in sample["messages"]:
        if isinstance(turn["content"], str):
            turn["content"] = shape(text(turn["content"]))
    assert read_one(tmp_path, sample) == read_one(tmp_path, five_turns())


def test_without_a_transcript_the_target_is_what_follows_the_known_words(tmp_path: Path) -> None:
    """Everything after them, colons included, and not what follows the last colon."""
    sample = three_turns()
    sample["messages"][2]["content"] = [audio("b.wav")]
    assert read_one(tmp_path, sample).target_text == "target: text"
    sample["messages"][1]["content"][2] = text(f"{REQUEST} he said: {REQUEST} x")
    assert read_one(tmp_path, sample).target_text == f"he said: {REQUEST} x"
    sample = five_turns()
    sample["messages"][3]["content"] = f"{REQUEST} at 12:30"
    assert read_one(tmp_path, sample).target_text == "at 12:30"


def test_the_transcript_wins_over_the_request(tmp_path: Path) -> None:
    assert read_one(tmp_path, three_turns()).target_text == "said"
    sample = three_turns()
    del sample["messages"][1]["content"][2]
    assert read_one(tmp_path, sample).target_text == "said"


GUIDES = {
    "guide-chatml-one": "Target text to generate",
    "guide-chatml-array": "والميزة فيها يعني الكيس الماتيريال، هذا انت بيتي هو كاربون.",
    "guide-chatml-prompt": "no target audio: this is a prompt",
    "guide-paired": "no target audio: this is a prompt",
    "guide-conversations": "no target audio: this is a prompt",
    "guide-mixed": "no target audio: this is a prompt",
    "guide-manifest": "no reference: recordings of one speaker are paired with `pairing: same-speaker`",
}


@pytest.mark.parametrize("name", GUIDES)
def test_the_examples_of_guides_are_learned_from_or_refused_for_the_right_reason(name: str) -> None:
    """To the letter as people copy them; what `convert` makes of them is beside them."""
    path = QUICKSTART.parents[3] / "tests" / "fixtures" / "formats" / f"{name}.json"
    homes = QUICKSTART.parents[4]  # an example reaches for audio in a folder beside the project
    (read,) = read_samples(SourceFile(path=path), root=homes)
    said = read.reason if isinstance(read, Rejected) else read.target_text
    assert said.startswith(GUIDES[name])


def test_parts_that_hold_no_text_do_not_count(tmp_path: Path) -> None:
    sample = three_turns()
    sample["messages"][2]["content"].insert(0, text(" "))
    assert read_one(tmp_path, sample).target_text == "said"


def test_the_system_turn_may_be_left_out_and_a_scene_given_in_two_ways(tmp_path: Path) -> None:
    sample = three_turns()
    system = sample["messages"].pop(0)
    read = read_one(tmp_path, sample)
    assert (read.system, read.scene) == ("Generate audio following instruction.", None)

    system["content"] = "Say it.\n\n<|scene_desc_start|>\nA quiet room.\n<|scene_desc_end|>"
    sample["messages"].insert(0, system)
    read = read_one(tmp_path, sample)
    assert (read.system, read.scene) == ("Say it.", "A quiet room.")

    system["content"] = "Say it."
    sample["messages"].insert(1, {"role": "scene", "content": [text("A quiet room.")]})
    read = read_one(tmp_path, sample)
    assert (read.system, read.scene) == ("Say it.", "A quiet room.")


def test_an_offset_cuts_and_a_duration_alone_describes(tmp_path: Path) -> None:
    sample = three_turns()
    sample["messages"][1]["content"][1].update(offset=0, duration=1.5)
    sample["messages"][2]["content"][1].update(offset=None, duration=2)
    read = read_one(tmp_path, sample)
    reference, target = read.reference_audio, read.target_audio
    assert (reference.offset, reference.duration, reference.declared) == (0.0, 1.5, None)
    assert (target.offset, target.duration, target.declared) == (None, None, 2.0)
    assert target == AudioSpan(target.path), "what the data says of a file is no part of what is read"


def test_audio_may_lie_in_the_project_or_beside_the_data(tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "disk"
    project.mkdir()
    elsewhere.mkdir()
    sample = three_turns()
    sample["messages"][1]["content"][1]["audio_url"] = "../clips/a.wav"
    sample["messages"][2]["content"][1]["audio_url"] = str(project / "b.wav")
    read = read_one(project, sample)
    assert read.reference_audio.path == project / "clips" / "a.wav"
    assert read.target_audio.path == project / "b.wav"
    # A data file outside of the project may use what lies beside it.
    (elsewhere / "d.json").write_text(json.dumps([three_turns()]))
    (beside,) = read_chatml(elsewhere / "d.json", project)
    assert isinstance(beside, CloningSample)
    assert beside.reference_audio.path == elsewhere / "a.wav"


def without(sample: dict[str, Any], *path: Any) -> dict[str, Any]:
    sample = copy.deepcopy(sample)
    place: Any = sample
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return sample


def having(sample: dict[str, Any], value: Any, *path: Any) -> dict[str, Any]:
    sample = copy.deepcopy(sample)
    place: Any = sample
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return sample


USER = ("messages", 1, "content")
ANSWER = ("messages", 2, "content")
REASONS: list[tuple[Any, str]] = [
    (17, "a sample is a JSON object, not 17"),
    (without(three_turns(), "messages"), "`messages` is a list of turns, not None"),
    (having(three_turns(), [], "messages"), "`messages` is a list of turns, not []"),
    (having(three_turns(), "hello", "messages", 1), "a turn is an object with a role, not 'hello'"),
    (without(three_turns(), "messages", 1, "role"), "a turn is an object with a role, not {'content'"),
    (having(three_turns(), "tool", "messages", 1, "role"), "unknown order of turns: tool, assistant"),
    (without(three_turns(), "messages", 1), "unknown order of turns: assistant"),
    (having(three_turns(), [three_turns()["messages"][0]], "messages"), "unknown order of turns: none"),
    (without(three_turns(), "messages", 2), "no target audio: this is a prompt to generate from"),
    (without(five_turns(), "messages", 4), "no target audio: this is a prompt to generate from"),
    (having(three_turns(), [text("said")], *ANSWER), "no target audio"),
    (having(five_turns(), "said", "messages", 4, "content"), "no target audio"),
    (having(five_turns(), "said", "messages", 2, "content"), "the first assistant turn holds no reference audio"),
    (
        having(three_turns(), [audio("b.wav"), audio("c.wav")], *ANSWER),
        "an assistant turn holds audio, audio, where one text and one audio belong",
    ),
    (
        having(three_turns(), [audio("a.wav"), text("ref"), text(REQUEST)], *USER),
        "the user turn holds audio, text, text, where reference text, reference audio and request belong",
    ),
    (having(three_turns(), "ref", *USER), "no reference: recordings of one speaker are paired with `pairing:"),
    (
        having(five_turns(), [audio("a.wav")], "messages", 1, "content"),
        "the first user turn holds audio, where one text",
    ),
    (having(five_turns(), "", "messages", 3, "content"), "the second user turn holds nothing, where one text"),
    (having(three_turns(), ["a", "b"], "messages", 0, "content"), "the system turn holds text, text, where one text"),
    (
        having(having(three_turns(), [audio("b.wav")], *ANSWER), text("Speak: target"), *USER, 2),
        "no target text: neither an assistant's text nor a request",
    ),
    (
        having(having(three_turns(), [audio("b.wav")], *ANSWER), text(f"{REQUEST} "), *USER, 2),
        "no target text: neither an assistant's text nor a request",
    ),
    (having(three_turns(), None, *USER), "content is text, or a part of type text or audio, not None"),
    (
        having(three_turns(), {"type": "image"}, *USER, 0),
        "content is text, or a part of type text or audio, not {'type'",
    ),
    (having(three_turns(), 5, *USER, 0, "text"), "a text part has a string `text`, not 5"),
    (without(three_turns(), *ANSWER, 1, "audio_url"), "an audio part names a file in `audio_url`, not None"),
    (
        having(three_turns(), {"type": "audio", "audio_url": "", "raw_audio": "UklGR"}, *ANSWER, 1),
        "an audio part names a file in `audio_url`, not '' (audio embedded as `raw_audio` is not read",
    ),
    (having(three_turns(), "https://x.org/a.wav", *USER, 1, "audio_url"), "audio 'https://x.org/a.wav' is a URL"),
    (having(three_turns(), "data:audio/wav;base64,UklGR", *USER, 1, "audio_url"), "is a URL"),
    (having(three_turns(), "../../a.wav", *USER, 1, "audio_url"), "audio '../../a.wav' lies outside"),
    (having(three_turns(), "/etc/passwd", *USER, 1, "audio_url"), "audio '/etc/passwd' lies outside"),
    (having(three_turns(), "a\0.wav", *USER, 1, "audio_url"), "is no file name"),
    (having(three_turns(), "a\ud800.wav", *USER, 1, "audio_url"), "is no file name"),
    (having(three_turns(), -1, *USER, 1, "offset"), "`offset` is a number of seconds, not -1"),
    (having(three_turns(), "1.5", *USER, 1, "duration"), "`duration` is a number of seconds, not '1.5'"),
    (having(three_turns(), True, *USER, 1, "offset"), "`offset` is a number of seconds, not True"),
    (having(three_turns(), 10**400, *USER, 1, "offset"), "`offset` is a number of seconds, not 1000"),
    (having(three_turns(), 0, *USER, 1, "duration"), "`duration` is 0; it has to be above 0"),
    (having(three_turns(), ["noor"], "speaker"), "the speaker is one line of text or a number, not ['noor']"),
    (having(three_turns(), "a\nb", "misc", "sample_id"), "the id is one line of text or a number, not 'a\\nb'"),
    (having(three_turns(), "\ud800", "misc", "sample_id"), "the id is one line of text or a number, not '\\ud800'"),
]


@pytest.mark.parametrize("layout", ["array", "lines"])
@pytest.mark.parametrize("bad, reason", REASONS, ids=[reason[:50] for _, reason in REASONS])
def test_a_bad_sample_is_rejected_with_reason_file_and_line(tmp_path: Path, bad: Any, reason: str, layout: str) -> None:
    """It stands between two good ones, which are read all the same."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"train.{layout}"
    samples = [three_turns(), bad, five_turns()]
    if layout == "array":
        path.write_text(json.dumps(samples, indent=1))
        line = 2 + json.dumps([three_turns()], indent=1).count("\n") - 1
    else:
        path.write_text("\n\n".join(json.dumps(sample) for sample in samples))
        line = 3
    before, rejected, after = read_chatml(path, tmp_path)
    assert isinstance(before, CloningSample)
    assert isinstance(after, CloningSample)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith(reason) or reason in rejected.reason
    assert (rejected.source, rejected.line) == (path, line)
    assert rejected.reason[0].islower() or rejected.reason[0] == "`"
    assert "\n" not in rejected.reason
    assert not rejected.reason.endswith(".")


def test_samples_without_an_id_are_named_after_their_place(tmp_path: Path) -> None:
    path = tmp_path / "data" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps([without(three_turns(), "misc"), 5, without(five_turns(), "id")]))
    ids = [one.id for one in read_chatml(path, tmp_path)]
    assert ids == ["data.train-000000", "data.train-000001", "data.train-000002"]


def test_the_quickstarts_speech_is_read() -> None:
    samples = list(read_samples(SourceFile(path=QUICKSTART), root=QUICKSTART.parents[3]))
    raw = json.loads(QUICKSTART.read_text("utf-8"))
    lines = QUICKSTART.read_text("utf-8").splitlines()
    assert len(samples) == 32
    for sample, expected in zip(samples, raw, strict=True):
        assert isinstance(sample, CloningSample)
        assert sample.id == expected["misc"]["sample_id"]
        assert sample.target_text == expected["misc"]["target_transcript"]
        assert sample.reference_text == expected["misc"]["ref_transcript"]
        assert sample.reference_audio.path.is_file()
        assert sample.target_audio.declared == expected["misc"]["duration"]
        assert lines[sample.line - 1] == "  {"


def test_a_file_of_another_format_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('\n{"wave": "a.wav", "words": "x"}\n')
    with pytest.raises(StepError, match="the first sample has the fields 'wave', 'words'") as caught:
        detect(path)
    assert (caught.value.path, caught.value.line) == (path, 2)
    path.write_text("[1]")
    with pytest.raises(StepError, match="the first sample has 1"):
        detect(path)
    path.write_text('{"messages": \n{oops\n')
    with pytest.raises(StepError, match="no line holds a JSON object"):
        detect(path)
    with pytest.raises(StepError, match="unknown data format 'webdataset'"):
        read_records(path, "webdataset", root=tmp_path)
    with pytest.raises(StepError) as caught:
        read_records(tmp_path / "none.json", "auto", root=tmp_path)
    assert caught.value.code == ExitCode.MISSING_INPUT
