"""What is labelled, and which position is to predict it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from higgsc.contract.outcome import StepError
from higgsc.data.delay import IGNORE
from higgsc.train.rows.sequence import AudioTokens, build_sequence, label_counts

from .conftest import MakeSample

BOS, EOS = 1024, 1025


def test_every_code_of_the_target_is_predicted_from_the_row_before(
    make_sample: MakeSample, tokens: AudioTokens
) -> None:
    sample = make_sample(0, reference=5, target=4)
    sequence = build_sequence(sample, tokens)
    # Position of each row of the target: after prefix, 5 + 9 rows, middle.
    start = len(sample.prefix) + 14 + len(sample.middle)
    predicted = {
        (int(position) + 1 - start, k): int(code)
        for position, row in zip(sequence.audio_positions, sequence.audio_labels, strict=True)
        for k, code in enumerate(row)
        if code != IGNORE
    }
    # Codebook k runs k rows late, after a row of BOS: frame t is row 1 + t + k, and one EOS follows.
    expected = {(1 + t + k, k): int(sample.target[t, k]) for t in range(4) for k in range(8)}
    expected |= {(1 + 4 + k, k): EOS for k in range(8)}
    assert predicted == expected


def test_the_label_of_a_position_is_the_input_of_the_next(make_sample: MakeSample, tokens: AudioTokens) -> None:
    sample = make_sample(1)
    sequence = build_sequence(sample, tokens)
    row_of_position = np.cumsum(np.isin(sequence.input_ids, (51, 53))) - 1
    next_rows = sequence.audio_rows[row_of_position[sequence.audio_positions + 1]]
    labelled = sequence.audio_labels != IGNORE
    assert (sequence.audio_labels[labelled] == next_rows[labelled]).all()
    assert (sequence.text_labels == sequence.input_ids[sequence.text_positions + 1]).all()


def test_end_of_stream_is_labelled_once_per_codebook(make_sample: MakeSample, tokens: AudioTokens) -> None:
    labels = build_sequence(make_sample(2, target=6), tokens).audio_labels
    assert (labels == EOS).sum(axis=0).tolist() == [1] * 8
    assert not (labels == BOS).any()
    assert (labels != IGNORE).sum(axis=0).tolist() == [7] * 8


def test_reference_and_prompt_are_never_labelled(make_sample: MakeSample, tokens: AudioTokens) -> None:
    sample = make_sample(3)
    sequence = build_sequence(sample, tokens)
    prompt = len(sample.prefix) + len(sample.reference) + 9 + len(sample.middle)
    # The prompt's last token, <|audio_out_bos|>, is the model's own, and is predicted from the one before it.
    assert sequence.text_positions[0] == prompt - 2
    assert sequence.audio_positions.min() == prompt
    end = len(sequence.input_ids)
    assert sequence.text_positions.tolist()[1:] == [end - 3, end - 2]
    assert sequence.text_labels.tolist() == [52, 54, 50]


def test_placeholders_match_the_rows(make_sample: MakeSample, tokens: AudioTokens) -> None:
    sample = make_sample(4, reference=3, target=2)
    sequence = build_sequence(sample, tokens)
    start = len(sample.prefix)
    assert sequence.input_ids[start : start + 12].tolist() == [51] * 5 + [53] * 7
    assert len(sequence.audio_rows) == (3 + 9) + (2 + 9)
    assert np.isin(sequence.input_ids, (51, 53)).sum() == len(sequence.audio_rows)


def test_counts_are_known_from_the_lengths(make_sample: MakeSample, tokens: AudioTokens) -> None:
    frames = np.array([4, 1, 9])
    audio, text = label_counts(frames)
    for seed, target in enumerate(frames):
        sequence = build_sequence(make_sample(seed, target=int(target)), tokens)
        assert (sequence.audio_labels != IGNORE).sum() == audio[seed]
        assert len(sequence.text_labels) == text[seed]


def test_text_of_another_vocabulary_is_refused(make_sample: MakeSample, tokens: AudioTokens) -> None:
    sample: Any = replace(make_sample(5), prefix=np.array([3, 99, 52]))
    with pytest.raises(StepError, match="sample-5: text id 99 is not in the base's vocabulary of 64"):
        build_sequence(sample, tokens)
