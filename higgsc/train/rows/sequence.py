"""One training sequence: its ids, its audio rows, and which position learns to predict what.

The layout is the five-turn voice-cloning prompt that Higgs Audio v2 was trained on:

    prefix  reference rows  middle  target rows  suffix
    ^ system, reference text        ^ <|audio_eos|>, target text, <|audio_out_bos|>
                                                 ^ <|audio_eos|><|eot_id|>

Only what the model has to say itself is labelled: the target's codes, one end-of-stream code per codebook, and
the text tokens around the target (`<|audio_out_bos|>`, `<|audio_eos|>`, `<|eot_id|>`), as in the collator of the
original implementation (boson-ai/higgs-audio, `higgs_audio_collator.py`). The reference and the prompt never are.

A causal model's output at position `p` predicts the token at `p + 1`. That shift is done here, once, in
`predicting`: labels come with the positions whose outputs they are compared with, and nothing later shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from higgsc.catalog.codec import CODEBOOKS, DELAY_ROWS, audio_rows
from higgsc.contract.outcome import StepError
from higgsc.data.delay import IGNORE, apply_delay, delayed_labels
from higgsc.data.store import StoredSample
from higgsc.train.decoder.heard import places_of

TEXT_LABELS = 3
"""Labelled text tokens of a sample: `<|audio_out_bos|>`, `<|audio_eos|>`, `<|eot_id|>`."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioTokens:
    """The ids of a checkpoint that a sequence is built with."""

    placeholder: int
    """Text id that stands for an audio row."""
    delay: int
    """Text id that stands for one of a clip's last `DELAY_ROWS` rows."""
    stream_bos: int
    """Code before a codebook's first frame."""
    stream_eos: int
    """Code after a codebook's last frame."""
    vocabulary: int
    """Text ids are below this."""

    @classmethod
    def of(cls, config: Any) -> AudioTokens:
        """Read them from a `HiggsAudioV2Config`."""
        return cls(
            placeholder=config.audio_token_id,
            delay=config.audio_delay_token_id,
            stream_bos=config.audio_stream_bos_id,
            stream_eos=config.audio_stream_eos_id,
            vocabulary=config.vocab_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A sample as the model sees it: L positions, M of them audio rows, P and Q of them with labels."""

    input_ids: Ids
    """`[L]`, placeholders included."""
    is_audio: NDArray[np.bool_]
    """`[L]`, which positions are audio rows."""
    audio_rows: Ids
    """`[M, 8]`, delayed codes of the reference, then of the target."""
    audio_positions: Ids
    """`[P]`, ascending: positions whose outputs predict the rows of `audio_labels`."""
    audio_labels: Ids
    """`[P, 8]`, codes or `IGNORE`."""
    text_positions: Ids
    """`[Q]`, ascending: positions whose outputs predict `text_labels`."""
    text_labels: Ids
    """`[Q]`, text ids."""
    heard: NDArray[np.uint16] | None
    """What a Whisper heard of the reference's frames, the bits of bfloat16 `[T, width]`."""
    heard_positions: Ids
    """`[T]`: the audio rows of those frames."""


def predicting(positions: Ids) -> Ids:
    """The positions whose outputs predict the tokens at `positions`: each the one before."""
    return positions - 1


def label_counts(target_frames: int | NDArray[np.int64]) -> tuple[Any, Any]:
    """How many labels samples have, from the length of their targets alone.

    Every process can thereby work out the label counts of a whole global batch without talking to the others.

    Args:
        target_frames: Frames of a target, or an array of them.

    Returns:
        Labelled codes, `8 * (frames + 1)` (the frames and one end-of-stream per codebook), and labelled text
        tokens; integers or arrays like the argument.
    """
    return CODEBOOKS * (target_frames + 1), 0 * target_frames + TEXT_LABELS


def build_sequence(sample: StoredSample, tokens: AudioTokens) -> Sequence:
    """Lay out a sample of the store.

    Args:
        sample: Text ids around the two clips, and the clips' codes without delay and stream markers.
        tokens: Ids of the checkpoint.

    Raises:
        StepError: If a text id is not in the checkpoint's vocabulary: the store was made with another one.
    """
    marks = {"bos": tokens.stream_bos, "eos": tokens.stream_eos}
    reference, target = apply_delay(sample.reference, **marks), apply_delay(sample.target, **marks)
    input_ids = np.concatenate(
        (
            sample.prefix,
            _placeholders(len(sample.reference), tokens),
            sample.middle,
            _placeholders(len(sample.target), tokens),
            sample.suffix,
        )
    )
    largest = int(input_ids.max())
    if largest >= tokens.vocabulary:
        raise StepError(
            f"sample {sample.id}: text id {largest} is not in the base's vocabulary of {tokens.vocabulary}",
            help="the store was prepared for another base; run the prepare step again",
        )

    target_start = len(sample.prefix) + len(reference) + len(sample.middle)
    target_end = target_start + len(target)
    labels = delayed_labels(sample.target, eos=tokens.stream_eos)
    rows = np.flatnonzero((labels != IGNORE).any(axis=1))
    spoken = np.r_[target_start - 1, target_end : target_end + len(sample.suffix)]

    is_audio = np.isin(input_ids, (tokens.placeholder, tokens.delay))
    assert is_audio.sum() == len(reference) + len(target), "as many placeholders as audio rows"
    assert len(spoken) == TEXT_LABELS, "the suffix is <|audio_eos|><|eot_id|>"
    return Sequence(
        input_ids=input_ids,
        is_audio=is_audio,
        audio_rows=np.concatenate((reference, target)),
        audio_positions=predicting(target_start + rows),
        audio_labels=labels[rows],
        text_positions=predicting(spoken),
        text_labels=input_ids[spoken],
        heard=sample.heard,
        heard_positions=places_of(len(sample.prefix), len(sample.reference)),
    )


def _placeholders(frames: int, tokens: AudioTokens) -> Ids:
    """Text ids of a clip's rows, `[frames + 9]`, as `HiggsAudioV2Processor.get_audio_tokens` writes them."""
    ids = np.full(audio_rows(frames), tokens.placeholder, dtype=np.int64)
    ids[-DELAY_ROWS:] = tokens.delay
    return ids
