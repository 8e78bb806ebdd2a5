"""The delay pattern: how a clip's codes are laid out over the rows of the language model.

Codebook `k` runs `k` rows behind codebook 0, so that a frame's coarse code is known before its finer codes
are predicted. With `T` frames and `K` codebooks, a clip takes `T + K + 1` rows:

    row         0    1    2    3   ...            T+K
    codebook 0  BOS  c0   c1   c2  ...  EOS  EOS  EOS
    codebook 1  BOS  BOS  c0   c1  ...       EOS  EOS
    codebook 2  BOS  BOS  BOS  c0  ...            EOS

Source: `HiggsAudioV2Processor.build_delay_pattern` of transformers, which gives the same rows. The pattern is
part of the released model (`use_delay_pattern: true` in its configuration).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from higgsc.catalog.codec import STREAM_BOS, STREAM_EOS

IGNORE = -100
"""Label that PyTorch's cross entropy leaves out."""

Codes = npt.NDArray[np.integer[Any]]


def apply_delay(codes: Codes, *, bos: int = STREAM_BOS, eos: int = STREAM_EOS) -> npt.NDArray[np.int64]:
    """Lay the codes of one clip out in rows.

    Args:
        codes: Codes `[T, K]`, at least one frame.
        bos: Code before a codebook's first frame.
        eos: Code after a codebook's last frame.

    Returns:
        Rows `[T + K + 1, K]`, int64; the first row is all `bos`, the last all `eos`.

    Raises:
        ValueError: If `codes` is not a matrix with at least one frame.
    """
    frames, codebooks = _shape(codes)
    rows = np.full((frames + codebooks + 1, codebooks), eos, dtype=np.int64)
    for k in range(codebooks):
        rows[: k + 1, k] = bos
        rows[k + 1 : k + 1 + frames, k] = codes[:, k]
    return rows


def delayed_labels(codes: Codes, *, eos: int = STREAM_EOS, ignore: int = IGNORE) -> npt.NDArray[np.int64]:
    """What each row of `apply_delay` has to be predicted as.

    A codebook's label is its codes and then exactly one `eos`; the filling before and after is ignored. Row
    `r` of the labels belongs to row `r` of `apply_delay`: nothing is shifted here, so the prediction for row
    `r` is read from the position of row `r - 1`.

    Args:
        codes: Codes `[T, K]`, at least one frame.
        eos: Code after a codebook's last frame.
        ignore: Label of the rows that are not learned.

    Returns:
        Labels `[T + K + 1, K]`, int64.

    Raises:
        ValueError: If `codes` is not a matrix with at least one frame.
    """
    frames, codebooks = _shape(codes)
    labels = np.full((frames + codebooks + 1, codebooks), ignore, dtype=np.int64)
    for k in range(codebooks):
        labels[k + 1 : k + 1 + frames, k] = codes[:, k]
        labels[k + 1 + frames, k] = eos
    return labels


def revert_delay(rows: Codes, *, bos: int = STREAM_BOS, eos: int = STREAM_EOS) -> npt.NDArray[np.int64]:
    """Take the codes of one finished clip back out of its rows.

    Args:
        rows: Rows `[T + K + 1, K]`, from the all-`bos` row to the all-`eos` row.
        bos: Code before a codebook's first frame.
        eos: Code after a codebook's last frame.

    Returns:
        Codes `[T, K]`, int64.

    Raises:
        ValueError: If the rows are not what `apply_delay` makes: too few, `bos` or `eos` not where it
            belongs, or one of the two inside the clip.
    """
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"rows are a matrix [rows, codebooks], not of shape {rows.shape}")
    codebooks = rows.shape[1]
    frames = rows.shape[0] - codebooks - 1
    if frames < 1:
        raise ValueError(
            f"{rows.shape[0]} rows hold no frame: one frame of {codebooks} codebooks takes {codebooks + 2}"
        )
    codes = np.stack([rows[k + 1 : k + 1 + frames, k] for k in range(codebooks)], axis=1).astype(np.int64)
    if np.isin(codes, (bos, eos)).any():
        frame, codebook = np.argwhere(np.isin(codes, (bos, eos)))[0]
        raise ValueError(
            f"codebook {codebook} has the stream marker {codes[frame, codebook]} at frame {frame} of {frames}"
        )
    wrong = np.argwhere(apply_delay(codes, bos=bos, eos=eos) != rows)
    if len(wrong):
        row, codebook = wrong[0]
        raise ValueError(
            f"row {row} of codebook {codebook} is {rows[row, codebook]}, where the delay pattern has "
            f"{bos if row <= codebook else eos}"
        )
    return codes


def _shape(codes: Codes) -> tuple[int, int]:
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"codes are [T >= 1, K], not of shape {list(codes.shape)}")
    return codes.shape[0], codes.shape[1]
