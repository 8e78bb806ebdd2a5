"""Where the randomness of a run comes from: the spec's `seed`, and what for.

| purpose    | further numbers         | used by                                                               |
|------------|-------------------------|-----------------------------------------------------------------------|
| `ORDER`    | epoch                   | the permutation of the training samples (`rows/order.py`)             |
| `ADAPTER`  |                         | the adapter's first values, equal on all processes (`model/build.py`) |
| `DROPOUT`  | share of the data, step | what a step draws; processes that share the data draw other numbers,  |
|            |                         | those of one tensor group the same (`checkpoints/progress.py`)        |
| `SAMPLING` | sample                  | speech, during the training and in the evaluation                     |
| `SHARING`  | epoch                   | which samples with one reference share it (`rows/shared.py`)          |

Nothing else draws. No state is carried from one step to the next, so that a step draws the same whether it comes after
another, after a restart, or again; and a run that is submitted again is the same run. Which samples are held out, and
which recordings are paired, are functions of the seed and the samples' ids (`higgsc/data`).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What random numbers are for. The numbers are part of every run: they never change."""

    ORDER = 1
    ADAPTER = 2
    DROPOUT = 3
    SAMPLING = 4
    SHARING = 5


def sequence(seed: int, purpose: Purpose, *numbers: int) -> np.random.SeedSequence:
    """The source of a purpose's random numbers.

    Purpose and numbers go in as a spawn key: as mere entropy, `(1,)` and `(1, 0)` would be the same seed, because numpy
    fills entropy up with zeros.
    """
    return np.random.SeedSequence(seed, spawn_key=(purpose, *numbers))


def torch_seed(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A seed for `torch.manual_seed`, 64 bits."""
    return int(sequence(seed, purpose, *numbers).generate_state(1, np.uint64)[0])
