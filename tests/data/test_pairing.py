"""Pairs of reference and target out of single recordings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgsc.data.formats.reading import Read
from higgsc.data.pairing import NO_SPEAKER, pair_within_speakers
from higgsc.data.records import Audio, Record, Rejected, Utterance
from higgsc.data.samples import SourceFile, read_samples

SOURCE = Path("data.jsonl")


def utterance(number: int, speaker: str, audio: str) -> Read:
    return number + 1, Record(id=f"u{number}", target=Utterance(f"text {number}", Audio(audio)), speaker=speaker)


UTTERANCES = st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from("wxyz")), max_size=12).map(
    lambda drawn: [utterance(number, speaker, audio) for number, (speaker, audio) in enumerate(drawn)]
)


@given(UTTERANCES, st.integers(0, 5), st.randoms())
def test_pairs_are_of_one_speaker_never_of_one_recording_and_do_not_depend_on_order(
    utterances: list[Read], seed: int, random: object
) -> None:
    paired = list(pair_within_speakers(utterances, source=SOURCE, seed=seed))
    assert [line for line, _ in paired] == [line for line, _ in utterances]
    records = {record.id: record for _, record in utterances if isinstance(record, Record)}
    for _, made in paired:
        before = records[made.id]
        others = [
            other.target
            for other in records.values()
            if other.speaker == before.speaker and other.target.audio != before.target.audio
        ]
        if isinstance(made, Rejected):
            assert not before.speaker or not others
            continue
        assert made.target == before.target
        assert made.references[0] in others
    shuffled = list(utterances)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(pair_within_speakers(shuffled, source=SOURCE, seed=seed), key=lambda read: read[0]) == paired


def test_every_recording_is_a_reference_once_where_all_differ_and_the_seed_decides() -> None:
    utterances = [utterance(number, "a", f"{number}.wav") for number in range(50)]
    chosen = []
    for seed in (0, 0, 1):
        paired = [read for _, read in pair_within_speakers(utterances, source=SOURCE, seed=seed)]
        chosen.append([read.references[0].text for read in paired if isinstance(read, Record)])
        assert sorted(chosen[-1]) == sorted(f"text {number}" for number in range(50))
    assert chosen[0] == chosen[1] != chosen[2]


def test_what_has_a_reference_or_no_audio_stays() -> None:
    kept = Record(id="k", target=Utterance("t", Audio("t")), references=(Utterance("r", Audio("r")),), speaker="a")
    prompt = Record(id="p", target=Utterance("t"), speaker="a")
    reads: list[Read] = [(1, kept), (2, prompt), utterance(2, "a", "x")]
    paired = list(pair_within_speakers(reads, source=SOURCE, seed=0))
    assert paired[:2] == reads[:2]
    assert isinstance(paired[2][1], Rejected), "a target of another layout is no single recording"


def test_recordings_without_a_speaker_are_paired_if_their_user_says_whose_voice_it_is(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    path = tmp_path / "metadata.csv"
    path.write_text("one|first\ntwo|second\n")
    without = list(read_samples(SourceFile(path=path, pairing="same-speaker"), root=tmp_path))
    assert [read.reason for read in without if isinstance(read, Rejected)] == [NO_SPEAKER] * 2
    said = list(read_samples(SourceFile(path=path, pairing="same-speaker", speaker="lj"), root=tmp_path))
    assert [(one.target_text, one.reference_text, one.speaker) for one in said if not isinstance(one, Rejected)] == [
        ("first", "second", "lj"),
        ("second", "first", "lj"),
    ]
    unpaired = list(read_samples(SourceFile(path=path), root=tmp_path))
    with pytest.raises(AssertionError):
        assert not any(isinstance(read, Rejected) for read in unpaired)
    assert "`pairing: same-speaker`" in unpaired[0].reason  # type: ignore[union-attr]
