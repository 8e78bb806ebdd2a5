"""The prepare step on sources other than ChatML, and what the spec says about them: pairing, speaker, roots, text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from higgsc.contract.jobs import DataSource, TextJob
from higgsc.contract.outcome import StepError


def source(path: str, **more: Any) -> tuple[DataSource, ...]:
    return (DataSource(path=path, format="auto", **more),)


def test_single_recordings_are_paired_and_their_texts_normalised(project: Any) -> None:
    wavs = project.root / "data" / "wavs"
    wavs.mkdir()
    lines = []
    for number in range(3):
        (project.root / "data" / project.audio(f"{number}.wav", seed=number)).rename(wavs / f"{number}.wav")
        lines.append(f"{number}|الرقـم ١{number}")
    (project.root / "data" / "metadata.csv").write_text("\n".join(lines), "utf-8")
    with pytest.raises(StepError, match="no reference: recordings of one speaker are paired with `pairing:"):
        project.prepare(sources=source("data/metadata.csv"))
    with pytest.raises(StepError, match="no speaker is named"):
        project.prepare(sources=source("data/metadata.csv", pairing="same-speaker"))
    result = project.prepare(
        sources=source("data/metadata.csv", pairing="same-speaker", speaker="lj"), text=TextJob(digits="western")
    )
    store = project.store()
    assert store.counts["samples"] == store.counts["clips"] == 3
    assert store.speakers == ["lj"]
    records = [store.record(number) for number in range(3)]
    assert [record["target_text"] for record in records] == ["الرقم 10.", "الرقم 11.", "الرقم 12."]
    assert sorted(record["reference_text"] for record in records) == [record["target_text"] for record in records]
    assert all(record["reference_audio"] != record["target_audio"] for record in records)
    # Each text was cleaned as a target and as a reference.
    assert result.figures["text/tatweel"] == result.figures["text/final stop"] == 6


def test_audio_behind_a_link_is_read_from_the_roots_of_the_spec_alone(project: Any, tmp_path_factory: Any) -> None:
    elsewhere: Path = tmp_path_factory.mktemp("disk")
    for name in ("a.wav", "b.wav"):
        (project.root / "data" / project.audio(name, seed=len(name))).rename(elsewhere / name)
    (project.root / "data" / "corpus").symlink_to(elsewhere)
    row = {
        "reference_audio": "corpus/a.wav",
        "reference_text": "مرجع",
        "target_audio": str(elsewhere / "b.wav"),
        "target_text": "هدف",
    }
    (project.root / "data" / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(StepError, match="lies outside the data file"):
        project.prepare("data/pairs.jsonl")
    row["target_audio"] = "corpus/b.wav"
    (project.root / "data" / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(StepError, match=r"reference audio data/corpus/a\.wav: a link leads out of the data's folders"):
        project.prepare("data/pairs.jsonl")
    project.prepare("data/pairs.jsonl", roots=(str(elsewhere),))
    assert project.store().counts["samples"] == 1
