"""Samples of the store to a row for the model, many at a time.

The result is that of `pack` over `build_sequence` of each sample, which say what a row is made of. Here the same is
done with whole arrays and no work in Python for each sample: the GPU does not wait for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from higgsc.catalog.codec import CODEBOOKS, DELAY_ROWS, EXTRA_ROWS_PER_CLIP
from higgsc.contract.outcome import StepError
from higgsc.data.delay import IGNORE
from higgsc.data.store import Store
from higgsc.train.decoder.heard import FIRST_ROW, Heard
from higgsc.train.decoder.routes import ALONE
from higgsc.train.rows.row import PackedBatch, structure
from higgsc.train.rows.sequence import AudioTokens, predicting
from higgsc.train.rows.shared import Shared

Ids = NDArray[np.int64]
Codes = NDArray[np.int16]

_HEAD = np.ravel_multi_index(np.triu_indices(CODEBOOKS), (CODEBOOKS, CODEBOOKS))
"""Places in a clip's first rows where a codebook has not begun yet: `row <= codebook`."""
_TAIL = np.ravel_multi_index(np.tril_indices(CODEBOOKS, -1), (CODEBOOKS, CODEBOOKS))
"""Places in the rows from a clip's first end-of-stream on where a codebook has ended before: `row > codebook`."""
_SUFFIX = 2
"""`<|audio_eos|><|eot_id|>`."""


def assemble(
    store: Store, indices: Ids, tokens: AudioTokens, shared: Shared | None = None, *, heard: bool = False
) -> PackedBatch:
    """Put samples into one row; ids are int32 in it and codes int16, until it is moved to a device.

    Args:
        store: Where they are.
        indices: Which ones, in the order of the row, at least one.
        tokens: Ids of the checkpoint.
        shared: Which begin alike: where such samples follow each other, what they begin with is there once.
        heard: Whether the model listens, so that the row comes with what a Whisper has heard; the store has to hold it.

    Raises:
        StepError: If a text id is not in the checkpoint's vocabulary: the store was made with another one.
    """
    index = store.index
    words, frames = index.words[indices], index.frames[indices]
    assert (words[:, 2] == _SUFFIX).all(), "the suffix is <|audio_eos|><|eot_id|>"
    first_word, rows = index.text[indices], frames + EXTRA_ROWS_PER_CLIP
    follows = np.zeros(len(indices), dtype=bool) if shared is None else shared.follows(indices)
    if follows.any():
        assert (words[follows, 1] > 1).all(), "no label of a target is predicted from what it shares"
        first_word = first_word + np.where(follows, words[:, 0], 0)
        words[follows, 0] = rows[follows, 0] = 0
    # The five parts of a sample, text and audio in turn, and where each begins in the row.
    parts = np.empty((len(indices), 5), dtype=np.int64)
    parts[:, 0::2], parts[:, 1::2] = words, rows
    starts = _before(parts)
    total = int(parts.sum())

    input_ids = np.full(total, tokens.placeholder, dtype=np.int32)
    clip_ends = starts[:, 2::2][rows > 0]
    for row in range(1, DELAY_ROWS + 1):
        input_ids[clip_ends - row] = tokens.delay
    # The ids of a sample lie one after the other in the store, as the samples do here.
    text_rows = _ranges(starts[:, 0::2].ravel(), words.ravel())
    text = np.take(store.text, _ranges(first_word, words.sum(axis=1)))
    if (largest := int(text.max())) >= tokens.vocabulary:
        raise _foreign(store, indices, largest, tokens)
    input_ids[text_rows] = text
    is_audio = np.ones(total, dtype=bool)
    is_audio[text_rows] = False

    audio = _delayed(store, indices, rows, tokens)
    target, target_frames = starts[:, 3], frames[:, 1]
    labels = target_labels(audio, _before(rows)[:, 1], target_frames)
    spoken = np.stack([target - 1, starts[:, 4], starts[:, 4] + 1], axis=1).ravel()
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids)[None],
        audio_input_ids=torch.from_numpy(audio)[None],
        audio_labels=torch.from_numpy(labels),
        text_labels=torch.from_numpy(input_ids[spoken]),
        heard=_heard(store, indices[~follows], starts[~follows, 1]) if heard else None,
        **structure(
            *_segments(parts, follows),
            is_audio,
            audio_labels=predicting(_ranges(target + 1, target_frames + CODEBOOKS)),
            text_labels=predicting(spoken),
        ),
    )


def _heard(store: Store, indices: Ids, first: Ids) -> Heard:
    """What was heard of the references of some samples, of which the rows begin at `first`."""
    index = store.index
    assert store.heard is not None and index.first_heard is not None, "the store was checked before"  # noqa: PT018
    frames = index.frames[indices, 0]
    features = np.take(store.heard, _ranges(index.first_heard[indices], frames), axis=0)
    return Heard.of(np.asarray(features), _ranges(first + FIRST_ROW, frames))


def _segments(parts: Ids, follows: NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """The segments of a row, and which of them each goes on from, from the lengths of its samples' parts.

    A sample is one segment, but where the next one follows it, it is two: what they share, and its own.
    """
    splits = ~follows & np.r_[follows[1:], False]
    opening = np.where(splits, parts[:, :2].sum(axis=1), 0)
    lengths = np.stack([opening, parts.sum(axis=1) - opening], axis=1)
    there = lengths > 0
    number = np.cumsum(there).reshape(lengths.shape) - 1
    opened = np.maximum.accumulate(np.where(splits, number[:, 0], ALONE))
    prefixes = np.full(lengths.shape, ALONE)
    prefixes[:, 1] = np.where(splits | follows, opened, ALONE)
    return lengths[there], prefixes[there]


def target_labels(audio: Codes, first: Ids, frames: Ids) -> Codes:
    """What the rows of the targets have to be predicted as, end to end; those of `higgsc.data.delay.delayed_labels`
    that hold a label.

    Args:
        audio: Delayed rows `[M, 8]`.
        first: First row of each target.
        frames: Frames of each target.

    Returns:
        Codes or `IGNORE`, `[P, 8]`. Row 0 of a target is left out: it is all begin-of-stream, which nobody has to say.
    """
    counts = frames + CODEBOOKS
    labels = np.take(audio, _ranges(first + 1, counts), axis=0)
    begin = _before(counts)
    _put(labels, begin, _HEAD[CODEBOOKS:] - CODEBOOKS, IGNORE)
    _put(labels, begin + frames, _TAIL, IGNORE)
    return labels


def _delayed(store: Store, indices: Ids, rows: Ids, tokens: AudioTokens) -> Codes:
    """The audio rows of all clips, `[M, 8]`, laid out as `higgsc.data.delay.apply_delay` does one."""
    there = rows.ravel() > 0
    first = store.index.first_frame[indices].ravel()[there]
    counts, begin = rows.ravel()[there], _before(rows).ravel()[there]
    # Each frame is gathered as one item of 16 bytes. The rows around a clip's frames are some other clip's for a
    # moment, then begin- and end-of-stream.
    gathered = np.empty(CODEBOOKS - 1 + int(counts.sum()), dtype=np.complex128)
    frames = store.codes.view(np.complex128)[:, 0]
    np.take(frames, _ranges(first - 1, counts), mode="clip", out=gathered[CODEBOOKS - 1 :])
    inner = gathered[CODEBOOKS - 1 :]
    inner[begin] = _item(tokens.stream_bos)
    inner[_ranges(begin + counts - CODEBOOKS, np.full(len(begin), CODEBOOKS))] = _item(tokens.stream_eos)
    level = inner.view(np.uint16).reshape(-1, CODEBOOKS)
    # Code `k` of row `r` comes from row `r - k`. A clip ends in as many rows of end-of-stream as its last codebook is
    # late: they end up in the next clip's start, which is written over, as is what comes before the first clip's.
    row, code = level.strides
    delayed = np.ascontiguousarray(as_strided(level, strides=(row, code - row)))
    _put(delayed, begin, _HEAD, tokens.stream_bos)
    return delayed.view(np.int16)  # with room for `IGNORE`


def _item(code: int) -> Any:
    """A row that has one code in all codebooks, as an item of 16 bytes."""
    return np.full(CODEBOOKS, code, dtype=np.uint16).view(np.complex128)[0]


def _put(rows: NDArray[Any], starts: Ids, places: Ids, value: int) -> None:
    """Write a value at the same places of the eight rows (or fewer) from each start."""
    rows.reshape(-1)[(starts[:, None] * CODEBOOKS + places).ravel()] = value


def _before(lengths: Ids) -> Ids:
    """Where each part begins when all are put one after the other, row by row; the shape of `lengths`."""
    ends = np.cumsum(lengths.ravel())
    return (ends - lengths.ravel()).reshape(lengths.shape)


def _ranges(starts: Ids, lengths: Ids) -> Ids:
    """`start, start + 1, …` for each start, as many as its length, all one after the other."""
    ends = np.cumsum(lengths)
    positions = np.repeat(starts - ends + lengths, lengths)
    positions += np.arange(len(positions))
    return positions


def _foreign(store: Store, indices: Ids, largest: int, tokens: AudioTokens) -> StepError:
    name = next(
        record["id"]
        for record, ids in ((store.record(int(number)), store.sample(int(number))) for number in indices)
        if max(int(part.max(initial=0)) for part in (ids.prefix, ids.middle, ids.suffix)) == largest
    )
    return StepError(
        f"sample {name}: text id {largest} is not in the base's vocabulary of {tokens.vocabulary}",
        help="the store was prepared for another base; run the prepare step again",
    )
