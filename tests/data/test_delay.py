"""The delay layout: it can be undone, and it is the layout of transformers' processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from higgsc.catalog.codec import AUDIO_DELAY, AUDIO_OUT, audio_rows  # noqa: E402
from higgsc.data.delay import apply_delay, delayed_labels, revert_delay  # noqa: E402

BOS, EOS = 1024, 1025


@st.composite
def clips(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 9)))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 1024, shape).astype(np.uint16)


@given(clips())
def test_reverting_gives_the_codes_back(codes: np.ndarray) -> None:
    rows = apply_delay(codes)
    assert rows.shape == (len(codes) + codes.shape[1] + 1, codes.shape[1])
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(revert_delay(rows), codes)


@given(clips())
def test_labels_are_the_codes_and_one_end_per_codebook(codes: np.ndarray) -> None:
    rows, labels = apply_delay(codes), delayed_labels(codes)
    labelled = labels != -100
    np.testing.assert_array_equal(labels[labelled], rows[labelled])
    assert (labelled.sum(axis=0) == len(codes) + 1).all()
    for k in range(codes.shape[1]):
        assert labels[labelled[:, k], k].tolist() == [*codes[:, k].tolist(), EOS]
        assert labels[: k + 1, k].tolist() == [-100] * (k + 1)


def test_the_released_layout_to_the_letter() -> None:
    codes = np.array([[10, 20, 30], [11, 21, 31]])
    assert apply_delay(codes).tolist() == [
        [BOS, BOS, BOS],
        [10, BOS, BOS],
        [11, 20, BOS],
        [EOS, 21, 30],
        [EOS, EOS, 31],
        [EOS, EOS, EOS],
    ]
    assert delayed_labels(codes).tolist() == [
        [-100, -100, -100],
        [10, -100, -100],
        [11, 20, -100],
        [EOS, 21, 30],
        [-100, EOS, 31],
        [-100, -100, EOS],
    ]


@pytest.mark.parametrize("frames", [1, 2, 7, 50])
def test_rows_are_those_of_the_processor(processor: Any, frames: int) -> None:
    codes = np.random.default_rng(frames).integers(0, 1024, (frames, 8))
    wrapped = np.vstack([np.full((1, 8), BOS), codes, np.full((1, 8), EOS)])
    expected = processor.build_delay_pattern(torch.from_numpy(wrapped.T)[None])[0].T.numpy()
    rows = apply_delay(codes)
    np.testing.assert_array_equal(rows, expected)
    assert len(rows) == audio_rows(frames)

    # Both triangles: BOS on and above the diagonal of the first rows, EOS on and below that of the last.
    triangle = np.triu(np.ones((8, 8), dtype=bool))
    assert (rows[:8][triangle] == BOS).all()
    assert (rows[-8:][triangle.T] == EOS).all()
    assert (rows == BOS).sum() == (rows == EOS).sum() == triangle.sum()
    # What the processor takes for the codes of these rows, as `batch_decode` does: all but the outer two.
    np.testing.assert_array_equal(processor.revert_delay_pattern(torch.from_numpy(rows[1:-1])).numpy(), codes)


def test_placeholders_are_those_of_the_processor(processor: Any) -> None:
    text = processor.get_audio_tokens(len(apply_delay(np.zeros((30, 8), dtype=np.uint16))))
    assert text == AUDIO_OUT * 32 + AUDIO_DELAY * 7


def test_other_stream_markers() -> None:
    codes = np.array([[5, 6]])
    rows = apply_delay(codes, bos=32, eos=33)
    assert rows.tolist() == [[32, 32], [5, 32], [33, 6], [33, 33]]
    assert revert_delay(rows, bos=32, eos=33).tolist() == codes.tolist()
    assert delayed_labels(codes, eos=33, ignore=-1).tolist() == [[-1, -1], [5, -1], [33, 6], [-1, 33]]


@pytest.mark.parametrize("make", [apply_delay, delayed_labels])
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (8,), (1, 2, 8)])
def test_a_clip_without_frames_is_refused(make: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"codes are \[T >= 1, K\]"):
        make(np.zeros(shape, dtype=np.uint16))


@given(clips(), st.data())
def test_any_wrong_marker_is_noticed(codes: np.ndarray, data: st.DataObject) -> None:
    rows = apply_delay(codes)
    markers = np.argwhere(rows >= BOS)
    row, codebook = data.draw(st.sampled_from(markers.tolist()))
    rows[row, codebook] = data.draw(st.sampled_from([7, BOS + EOS - rows[row, codebook]]))
    with pytest.raises(ValueError, match=f"row {row} of codebook {codebook} "):
        revert_delay(rows)


def test_a_marker_inside_the_clip_is_noticed() -> None:
    rows = apply_delay(np.zeros((4, 8), dtype=np.uint16))
    rows[6, 3] = EOS
    with pytest.raises(ValueError, match="codebook 3 has the stream marker 1025 at frame 2 of 4"):
        revert_delay(rows)


def test_unfinished_rows_are_refused() -> None:
    rows = apply_delay(np.zeros((4, 8), dtype=np.uint16))
    with pytest.raises(ValueError, match="9 rows hold no frame"):
        revert_delay(rows[:9])
    with pytest.raises(ValueError, match="row 4 of codebook 0 is 0, where the delay pattern has 1025"):
        revert_delay(rows[:-1])
    with pytest.raises(ValueError, match="matrix"):
        revert_delay(rows[:, 0])
