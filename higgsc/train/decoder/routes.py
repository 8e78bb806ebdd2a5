"""Where the tokens of a packed row go: which of the two feed-forward networks, and which other tokens they see.

Built once a batch, on the host, so that no layer has to ask the device how many tokens are audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.autograd import Function

ALONE = -1
"""In place of a segment's prefix: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The tokens of a row whose outputs are compared with a label, text first, then audio rows."""

    text: Tensor
    """int64: their places in the row, those of text."""
    audio: Tensor
    """int64: those of audio rows."""
    by_audio_label: Tensor
    """int64 `[P]`: which of them (text and audio joined) predicts each audio label."""
    by_text_label: Tensor
    """int64 `[Q]`: which of them predicts each text label."""

    @classmethod
    def of(
        cls, is_audio: NDArray[np.bool_], audio_labels: NDArray[np.int64], text_labels: NDArray[np.int64]
    ) -> Labelled:
        """From the kind of every token `[L]` and the places of the labels."""
        places = np.concatenate((audio_labels, text_labels))
        order, inverse, texts = _text_first(is_audio[places])
        parts = (places[order[:texts]], places[order[texts:]], *np.split(inverse, [len(audio_labels)]))
        return cls(**dict(zip(cls.__slots__, map(torch.from_numpy, parts), strict=True)))

    @property
    def places(self) -> Tensor:
        """All of them, int64 `[P + Q]`."""
        return torch.cat((self.text, self.audio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Routes of a packed row of L tokens in n segments."""

    is_audio: Tensor
    """bool `[L, 1]`: the token is an audio row."""
    by_kind: Tensor
    """int64 `[L]`: the tokens' places in the order text, then audio."""
    by_place: Tensor
    """int64 `[L]`: the inverse of `by_kind`."""
    text: Tensor
    """int64 `[T]`: places of the text, the first part of `by_kind`."""
    audio: Tensor
    """int64 `[M]`: places of the audio rows, the second part of `by_kind`."""
    starts: Tensor
    """int32 `[n + 1]`: where each segment begins, and the row ends."""
    prefixes: Tensor
    """int32 `[n]`: for each segment, the one before it that all of its tokens see wholly, or `ALONE`.

    Within its own segment a token sees itself and those before it. A prefix has no prefix of its own.
    """
    longest: int
    """Tokens of the longest segment."""
    shared: bool
    """Whether any segment has a prefix."""
    labelled: Labelled
    """The tokens whose outputs are compared with a label."""

    @classmethod
    def of(
        cls,
        is_audio: NDArray[np.bool_],
        lengths: ArrayLike,
        prefixes: ArrayLike | None = None,
        *,
        audio_labels: NDArray[np.int64],
        text_labels: NDArray[np.int64],
    ) -> Routes:
        """Work them out.

        Args:
            is_audio: Of every token, `[L]`.
            lengths: Tokens of each segment, in their order.
            prefixes: As `prefixes` above; none if left out.
            audio_labels: Places of the tokens whose outputs have an audio label, `[P]`.
            text_labels: Places of those that have a text label, `[Q]`; none of them has both.
        """
        sizes = np.asarray(lengths)
        assert sizes.sum() == len(is_audio), "the segments make up the row"
        before = np.full(len(sizes), ALONE, dtype=np.int32) if prefixes is None else np.asarray(prefixes, np.int32)
        assert len(before) == len(sizes), "a prefix, or -1, for each segment"
        assert (before < np.arange(len(before))).all(), "a prefix comes before what it is the prefix of"
        assert (before[before[before >= 0]] < 0).all(), "a prefix has no prefix"
        by_kind, by_place, texts = _text_first(is_audio)
        return cls(
            is_audio=torch.from_numpy(is_audio.copy())[:, None],
            by_kind=torch.from_numpy(by_kind),
            by_place=torch.from_numpy(by_place),
            text=torch.from_numpy(by_kind[:texts].copy()),
            audio=torch.from_numpy(by_kind[texts:].copy()),
            starts=torch.from_numpy(np.r_[0, np.cumsum(sizes)].astype(np.int32)),
            prefixes=torch.from_numpy(before),
            longest=int(sizes.max()),
            shared=bool((before >= 0).any()),
            labelled=Labelled.of(is_audio, audio_labels, text_labels),
        )


def _text_first(is_audio: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The order that has text before audio rows, each kind as it stands; its inverse; and how many are text."""
    texts = np.flatnonzero(~is_audio)
    order = np.concatenate((texts, np.flatnonzero(is_audio)))
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return order, inverse, len(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What every layer needs to know of a packed row."""

    routes: Routes
    cos: Tensor
    """`[L, 1, d / 2]`, of the angles by which the heads' pairs are turned."""
    sin: Tensor
    """`[L, 1, d / 2]`."""
    only: Labelled | None = None
    """In the last layer: what is needed of its output, where that is not all."""
    mask: Any = None
    """A `BlockMask` of FlexAttention, where that is what attends."""


class _Permute(Function):
    """The gradient is put back by a gather too, never by a scatter."""

    @staticmethod
    def forward(ctx, rows, order, inverse):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


def permute(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Rows of a matrix in another order, of which the inverse is known."""
    result: Tensor = _Permute.apply(rows, order, inverse)  # type: ignore[no-untyped-call]
    return result
