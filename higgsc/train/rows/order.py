"""The order in which an epoch visits the samples: a pure function of the seed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from higgsc.train.seeds import Purpose, sequence

Indices = NDArray[np.int64]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, samples: int) -> Indices:
    """Permutation of `range(samples)` that an epoch visits, int64 `[samples]`."""
    order: Indices = np.argsort(random_keys(seed, Purpose.ORDER, epoch, samples), kind="stable").astype(np.int64)
    order.flags.writeable = False  # shared by all callers
    return order


def numbers_between(seed: int, samples: int, first: int, last: int) -> Indices:
    """Positions `first` to `last` of the endless stream of the epochs' permutations, `[last - first]`."""
    epochs = range(first // samples, (last - 1) // samples + 1)
    stream = np.concatenate([epoch_order(seed, epoch, samples) for epoch in epochs])
    skipped = epochs.start * samples
    part: Indices = stream[first - skipped : last - skipped]
    return part


def random_keys(seed: int, purpose: Purpose, epoch: int, samples: int) -> NDArray[np.uint64]:
    """A random number for each sample of an epoch, `[samples]`.

    Raw Philox output rather than what `Generator` makes of it: numpy keeps the streams of its bit generators the same
    from version to version, but not `Generator.permutation` (NEP 19).
    """
    return np.random.Philox(sequence(seed, purpose, epoch)).random_raw(samples)
