"""The quickstart's speech set is whole: the audio decodes and is speech, and the samples agree with it."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

DATA_SET = Path(__file__).resolve().parents[2] / "specs" / "data" / "quickstart"
SAMPLES: list[dict[str, Any]] = json.loads((DATA_SET / "train_chatml.json").read_text(encoding="utf-8"))
CLIPS = sorted((DATA_SET / "audio").glob("*.flac"))

SAMPLE_RATE = 24_000
REQUEST = "Please generate speech for given text in reference audio's voice: "
VOWEL_MARKS = {chr(code) for code in range(0x064B, 0x0653)}

each_clip = pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample["misc"]["sample_id"])


def user_parts(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return reference text, reference audio and request."""
    return sample["messages"][1]["content"]


def assistant_parts(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return target text and target audio."""
    return sample["messages"][2]["content"]


def audio_paths(sample: dict[str, Any]) -> tuple[Path, Path]:
    """Return the reference's and the target's file."""
    reference, target = user_parts(sample)[1], assistant_parts(sample)[1]
    return DATA_SET / reference["audio_url"], DATA_SET / target["audio_url"]


def decibels(amplitude: float) -> float:
    return 20 * float(np.log10(max(amplitude, 1e-9)))


@each_clip
def test_clip_is_24_khz_mono_flac(clip: Path) -> None:
    info = soundfile.info(clip)
    assert (info.format, info.subtype) == ("FLAC", "PCM_16")
    assert (info.samplerate, info.channels) == (SAMPLE_RATE, 1)


@each_clip
def test_clip_holds_unclipped_speech(clip: Path) -> None:
    speech, _ = soundfile.read(clip, dtype="float64")
    assert len(speech) == soundfile.info(clip).frames
    assert decibels(np.sqrt(np.mean(speech**2))) > -40
    assert decibels(np.abs(speech).max()) == pytest.approx(-3, abs=0.1)

    # Steady noise or a tone would pass the levels above; speech also moves between loud and quiet.
    frame = SAMPLE_RATE // 50
    frames = speech[: len(speech) // frame * frame].reshape(-1, frame)
    levels = np.array([decibels(rms) for rms in np.sqrt(np.mean(frames**2, axis=1))])
    assert np.percentile(levels, 90) - np.percentile(levels, 10) > 12


@each_clip
def test_clip_is_trimmed_to_a_short_silence(clip: Path) -> None:
    speech, _ = soundfile.read(clip, dtype="float64")
    loud = np.flatnonzero(np.abs(speech) > np.abs(speech).max() / 100)
    lead, tail = loud[0] / SAMPLE_RATE, (len(speech) - 1 - loud[-1]) / SAMPLE_RATE
    assert lead == pytest.approx(0.05, abs=0.01)
    assert tail == pytest.approx(0.05, abs=0.01)


def test_clips_last_one_to_four_seconds() -> None:
    durations = [soundfile.info(clip).duration for clip in CLIPS]
    assert len(durations) >= 32
    assert min(durations) >= 1
    assert max(durations) <= 4.5
    assert sum(duration > 4 for duration in durations) <= 3


def test_no_two_clips_hold_the_same_speech() -> None:
    assert len({soundfile.read(clip, dtype="int16")[0].tobytes() for clip in CLIPS}) == len(CLIPS)


def test_every_clip_is_a_target_exactly_once() -> None:
    targets = Counter(audio_paths(sample)[1] for sample in SAMPLES)
    assert targets == Counter(CLIPS)


def test_four_voices_speak_eight_sentences_each() -> None:
    assert sorted(Counter(sample["speaker"] for sample in SAMPLES).values()) == [8, 8, 8, 8]
    assert len({sample["misc"]["target_transcript"] for sample in SAMPLES}) == len(SAMPLES)


@each_sample
def test_reference_is_another_clip_of_the_same_voice(sample: dict[str, Any]) -> None:
    reference, target = audio_paths(sample)
    assert reference != target
    assert reference in CLIPS
    assert {path.stem.rsplit("-", 1)[0] for path in (reference, target)} == {sample["speaker"]}


@each_sample
def test_sample_follows_the_layout(sample: dict[str, Any]) -> None:
    assert list(sample) == ["messages", "start_index", "speaker", "misc"]
    assert sample["start_index"] == 0
    system, user, assistant = sample["messages"]
    assert system == {"role": "system", "content": "Generate audio following instruction."}
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    assert [part["type"] for part in user["content"]] == ["text", "audio", "text"]
    assert [part["type"] for part in assistant["content"]] == ["text", "audio"]
    for audio in (user["content"][1], assistant["content"][1]):
        assert list(audio) == ["type", "audio_url", "raw_audio", "duration", "offset"]
        assert (audio["raw_audio"], audio["offset"]) == ("", None)
    assert user["content"][1]["duration"] is None


@each_sample
def test_texts_agree_across_the_samples(sample: dict[str, Any]) -> None:
    reference, target = audio_paths(sample)
    transcripts = {other["misc"]["sample_id"]: other["misc"]["target_transcript"] for other in SAMPLES}
    misc = sample["misc"]
    assert misc["sample_id"] == target.stem
    assert user_parts(sample)[0]["text"] == misc["ref_transcript"] == transcripts[reference.stem]
    assert user_parts(sample)[2]["text"] == REQUEST + misc["target_transcript"]
    assert assistant_parts(sample)[0]["text"] == misc["target_transcript"]


@each_sample
def test_durations_agree_with_the_file(sample: dict[str, Any]) -> None:
    seconds = soundfile.info(audio_paths(sample)[1]).duration
    assert assistant_parts(sample)[1]["duration"] == pytest.approx(seconds, abs=0.01)
    assert sample["misc"]["duration"] == assistant_parts(sample)[1]["duration"]


def test_transcripts_are_normalised_arabic_some_with_vowel_marks() -> None:
    transcripts = [sample["misc"]["target_transcript"] for sample in SAMPLES]
    for transcript in transcripts:
        assert transcript == unicodedata.normalize("NFC", transcript)
        assert all("\u0600" <= letter <= "\u06ff" or letter in " ." for letter in transcript)
    marked = sum(bool(VOWEL_MARKS & set(transcript)) for transcript in transcripts)
    assert 4 <= marked < len(transcripts) / 2


def test_json_holds_arabic_letters_and_not_escapes() -> None:
    assert "\\u" not in (DATA_SET / "train_chatml.json").read_text(encoding="utf-8")


def test_data_set_is_small() -> None:
    files = [DATA_SET / "train_chatml.json", DATA_SET / "sentences.txt", *CLIPS]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
