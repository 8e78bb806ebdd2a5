"""Samples that begin alike: one reference and system prompt, many targets.

Samples with the same prefix ids and the same reference share those positions in a row:

    prefix, reference rows | middle, target rows, suffix | middle, target rows, suffix | ...
    the shared segment       a target                      another target

Every target attends to itself and to the shared segment, to no other target, and its positions go on from the end of
the shared segment: each sees what it would see alone. No label is predicted from the shared segment, whose last
position predicts the `<|audio_eos|>` that opens the middle of every target and that nobody has to say. So K samples
have the loss and the gradients that they have apart, and take P + K S positions instead of K (P + S).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from higgsc.catalog.codec import EXTRA_ROWS_PER_CLIP
from higgsc.data.store import Store
from higgsc.train.rows.order import Indices, random_keys
from higgsc.train.rows.packing import Rows
from higgsc.train.seeds import Purpose

_LEAST, _MOST = 0.15, 0.5
"""Share of a row that the targets of one reference may take, where they have to be divided. With less, fewer share;
with more, or always the same, rows are filled worse: with one reference for all, 20,000 samples and rows of 16,384
tokens, this fills 95 % (benchmarks/packing.py)."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Which samples begin alike. Both by number of the sample in the store."""

    groups: Indices
    """Equal for samples that may share their beginning, `[n]`."""
    prefixes: Indices
    """Positions of that beginning, `[n]`: prefix ids and the reference's rows."""

    def follows(self, row: Indices) -> NDArray[np.bool_]:
        """Which samples of a row share the beginning of the one before, `[samples]`."""
        groups = self.groups[row]
        follows: NDArray[np.bool_] = np.r_[False, groups[1:] == groups[:-1]]
        return follows


def shared_beginnings(store: Store, samples: Indices) -> Shared | None:
    """Find the samples that begin alike; None if no two of them do.

    Args:
        store: The samples.
        samples: Those to look at.
    """
    index = store.index
    prefixes = index.words[:, 0] + index.frames[:, 0] + EXTRA_ROWS_PER_CLIP
    groups = np.arange(len(prefixes))
    keys = np.stack([index.first_frame[samples, 0], index.frames[samples, 0], index.words[samples, 0]])
    by_key = np.lexsort(keys[::-1])
    changes = (np.diff(keys[:, by_key], axis=1) != 0).any(axis=0)
    for alike in np.split(samples[by_key], np.flatnonzero(changes) + 1) if not changes.all() else ():
        if len(alike) == 1:
            continue
        # The reference is the same; the ids before it have to be as well.
        words = int(index.words[alike[0], 0])
        texts = store.text[index.text[alike][:, None] + np.arange(words)]
        _, first, which = np.unique(texts, axis=0, return_index=True, return_inverse=True)
        groups[alike] = alike[first[which.reshape(-1)]]
    if len(np.unique(groups[samples])) == len(samples):
        return None
    return Shared(groups, prefixes)


def arrange(
    order: Indices, lengths: Indices, shared: Shared, *, seed: int, epoch: int, budget: int
) -> tuple[Rows, list[int]]:
    """Put samples that begin alike together, as many at a time as chance will have it.

    Half a row goes to one reference at most, so that a row has several voices. What is more is divided, into parts
    whose length is drawn: units of many lengths fill rows well.

    Args:
        order: The samples in the order of an epoch, as numbers of the store.
        lengths: Positions of each sample of the store by itself.
        shared: Which begin alike.
        seed: Determines who is together with whom.
        epoch: Every epoch puts others together.
        budget: Tokens of a row.

    Returns:
        The samples in units, those that come first in front, and the tokens of each unit.
    """
    keys = random_keys(seed, Purpose.SHARING, epoch, len(order))
    together = np.lexsort((keys, shared.groups[order]))
    samples = order[together]
    follows, prefixes = shared.follows(samples), shared.prefixes[samples]
    own = lengths[samples] - prefixes
    group = np.cumsum(~follows) - 1
    fits = (np.bincount(group, own)[group] + prefixes <= _MOST * budget).tolist()
    most = ((_LEAST + (_MOST - _LEAST) * (keys[together] / 2**64)) * budget).tolist()
    starts: list[int] = []
    tokens: list[int] = []
    first = 0
    for place, (follow, prefix, more) in enumerate(zip(follows.tolist(), prefixes.tolist(), own.tolist(), strict=True)):
        if follow and (fits[place] or tokens[-1] + more <= most[first]):
            tokens[-1] += more
        else:
            first = place
            starts.append(place)
            tokens.append(prefix + more)
    # A unit stands where its first sample stands in the epoch's order, which knows nothing of who is together.
    sequence = np.argsort(together[starts], kind="stable")
    bounds = np.append(starts, len(together))
    sizes = np.diff(bounds)[sequence]
    ends = np.cumsum(sizes)
    members = np.repeat(bounds[:-1][sequence] - ends + sizes, sizes) + np.arange(len(together))
    return Rows(samples[members], ends), np.array(tokens, dtype=np.int64)[sequence].tolist()
