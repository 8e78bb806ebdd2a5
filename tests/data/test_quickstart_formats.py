"""The quickstart's speech in every format that can be trained from: `prepare` makes the same store of all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import soundfile  # noqa: E402

from higgsc.contract.jobs import DataSource  # noqa: E402
from higgsc.data.convert import convert  # noqa: E402
from higgsc.data.formats.reading import FORMATS, detect  # noqa: E402
from higgsc.data.samples import SourceFile  # noqa: E402

QUICKSTART = Path(__file__).resolve().parents[2] / "specs" / "data" / "quickstart"
SYSTEM = "Generate audio following instruction."
SAMPLES: list[dict[str, Any]] = json.loads((QUICKSTART / "train_chatml.json").read_text("utf-8"))


class Flat:
    """What one of the quickstart's samples says."""

    def __init__(self, sample: dict[str, Any]) -> None:
        _, user, assistant = (turn["content"] for turn in sample["messages"])
        self.id, self.speaker = sample["misc"]["sample_id"], sample["speaker"]
        self.reference, self.reference_audio = user[0]["text"], user[1]["audio_url"]
        self.text, self.audio, self.duration = (
            assistant[0]["text"],
            assistant[1]["audio_url"],
            sample["misc"]["duration"],
        )


def five_turns(one: Flat) -> dict[str, Any]:
    turns = [("user", one.reference), ("assistant", {"type": "audio", "audio_url": one.reference_audio})]
    turns += [("user", one.text), ("assistant", {"type": "audio", "audio_url": one.audio})]
    messages = [{"role": role, "content": content} for role, content in [("system", SYSTEM), *turns]]
    return {"id": one.id, "speaker": one.speaker, "messages": messages, "start_index": 3}


def mixed(one: Flat) -> dict[str, Any]:
    heard = [{"type": "text", "text": one.reference}, {"type": "audio", "audio_url": one.reference_audio}]
    user = {"role": "user", "content": [*heard, {"type": "text", "text": one.text}]}
    answer = {"role": "assistant", "content": [{"type": "audio", "audio_url": one.audio}]}
    return {"id": one.id, "speaker": one.speaker, "messages": [user, answer]}


def swift(one: Flat) -> dict[str, Any]:
    said = [("user", one.reference), ("assistant", "<audio>"), ("user", one.text), ("assistant", "<audio>")]
    messages = [{"role": role, "content": content} for role, content in said]
    return {"id": one.id, "speaker": one.speaker, "messages": messages, "audios": [one.reference_audio, one.audio]}


def paired(one: Flat) -> dict[str, Any]:
    target = {"target_audio": one.audio, "target_text": one.text, "id": one.id, "speaker": one.speaker}
    return {"reference_audio": one.reference_audio, "reference_text": one.reference, **target}


def conversations(one: Flat) -> dict[str, Any]:
    turns = [{"from": "human", "value": one.reference}, {"from": "gpt", "value": one.text}]
    audio = {"audio": one.reference_audio, "target_audio": one.audio}
    return {"conversations": turns, **audio, "id": one.id, "speaker": one.speaker}


def instructions(one: Flat) -> dict[str, Any]:
    turns = {"instruction": one.reference, "output": one.text}
    return {**turns, "audio": one.reference_audio, "target_audio": one.audio, "id": one.id, "speaker": one.speaker}


def manifest(one: Flat) -> dict[str, Any]:
    return {
        "audio_filepath": one.audio, "text": one.text, "duration": one.duration, "speaker": one.speaker, "id": one.id,
    }  # fmt: skip


def nemo(one: Flat) -> dict[str, Any]:
    return {**manifest(one), "text": "?", "normalized_text": one.text}


def nemo_with_context(one: Flat) -> dict[str, Any]:
    return {**manifest(one), "context_audio_filepath": one.reference_audio, "context_text": one.reference}


def alone(one: Flat) -> dict[str, Any]:
    name = f"transcripts/{one.id}.txt"
    return {"id": one.id, "audio_file": one.audio, "transcript_file": name, "speaker_id": one.speaker}


def with_reference(one: Flat) -> dict[str, Any]:
    return {**alone(one), "ref_audio_file": one.reference_audio, "ref_transcript": one.reference}


WITH_REFERENCES: dict[str, tuple[str, Callable[[Flat], dict[str, Any]]]] = {
    "five": ("chatml", five_turns),
    "mixed": ("mixed", mixed),
    "swift": ("ms-swift", swift),
    "paired": ("paired", paired),
    "conversations": ("conversations", conversations),
    "instructions": ("conversations", instructions),
    "nemo-context": ("nemo", nemo_with_context),
    "metadata": ("train-higgs-audio", with_reference),
}
SINGLE: dict[str, tuple[str, Callable[[Flat], dict[str, Any]]]] = {
    "manifest": ("manifest", manifest),
    "nemo": ("nemo", nemo),
    "alone": ("train-higgs-audio", alone),
}


def write(folder: Path, name: str, form: str, make: Callable[[Flat], dict[str, Any]]) -> Path:
    """The quickstart's samples as a file of a format, which `auto` has to see."""
    rows = [make(Flat(sample)) for sample in SAMPLES]
    path = folder / f"{name}.jsonl"
    if form == "train-higgs-audio":
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"dataset_info": {}, "samples": rows}, ensure_ascii=False), "utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert detect(path)[0].name == form
    return path


def write_ljspeech(folder: Path) -> list[DataSource]:
    """A `metadata.csv` and 16-bit WAV files for each of the voices, whose names are not in the files."""
    sources = []
    for speaker in dict.fromkeys(sample["speaker"] for sample in SAMPLES):
        home = folder / "lj" / speaker
        (home / "wavs").mkdir(parents=True)
        lines = []
        for one in map(Flat, SAMPLES):
            if one.speaker == speaker:
                lines.append(f"{one.id}|?|{one.text}\n")
                wave, rate = soundfile.read(folder / one.audio, dtype="int16")
                soundfile.write(home / "wavs" / f"{one.id}.wav", wave, rate, subtype="PCM_16")
        (home / "metadata.csv").write_text("".join(lines), "utf-8")
        path = f"data/lj/{speaker}/metadata.csv"
        sources.append(DataSource(path=path, format="auto", pairing="same-speaker", speaker=speaker))
    return sources


@pytest.mark.slow
def test_every_format_gives_the_same_store(project: Any) -> None:
    data = project.root / "data"
    shutil.copytree(QUICKSTART, data, dirs_exist_ok=True)
    (data / "transcripts").mkdir()
    for one in map(Flat, SAMPLES):
        (data / "transcripts" / f"{one.id}.txt").write_text(f"{one.text}\n", "utf-8")
    seen = set()

    def prepared(sources: list[DataSource]) -> tuple[Any, ...]:
        assert project.prepare(sources=tuple(sources), validation_fraction=0.1) is not None
        store, contents = project.store(), project.contents()
        assert len(store) == 32
        assert store.counts["rejected"] == 0
        samples = [
            (one.id, one.speaker, [ids.tolist() for ids in (one.prefix, one.middle, one.suffix)],
             one.reference.tobytes(), one.target.tobytes())
            for one in map(store.sample, range(32))
        ]  # fmt: skip
        return samples, store.validation.tolist(), contents["codes.u16"], contents["text.u32"]

    def file(name: str, pairing: Any = None) -> tuple[Any, ...]:
        seen.add(detect(data / name)[0].name)
        return prepared([DataSource(path=f"data/{name}", format="auto", pairing=pairing)])

    expected = file("train_chatml.json")
    for name, (form, make) in WITH_REFERENCES.items():
        assert file(write(data, name, form, make).name) == expected, name
    convert(SourceFile(path=data / "train_chatml.json"), data / "canonical.jsonl")
    assert file("canonical.jsonl") == expected
    convert(SourceFile(path=data / "canonical.jsonl"), data / "chatml.jsonl", to="chatml")
    assert file("chatml.jsonl") == expected

    drawn = [file(write(data, name, form, make).name, "same-speaker") for name, (form, make) in SINGLE.items()]
    assert drawn[0] != expected
    assert drawn[1:] == drawn[:1] * 2
    # Pairs that `convert` makes, once and for all, with the seed of the run.
    source = SourceFile(path=data / "manifest.jsonl", pairing="same-speaker", seed=project.job().seed)
    convert(source, data / "drawn.jsonl", to="chatml")
    assert file("drawn.jsonl") == drawn[0]
    seen.add("ljspeech")
    # Other files with the same sound; only what is in the store says so.
    assert prepared(write_ljspeech(data))[:2] == drawn[0][:2]
    assert seen == set(FORMATS)
