"""The rows of every epoch, one after the other: each epoch's permutation, put into rows of a token budget."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from higgsc.train.rows.order import Indices, epoch_order
from higgsc.train.rows.packing import Rows, fill_rows
from higgsc.train.rows.shared import Shared, arrange

_REMEMBERED = 2
"""Epochs whose rows are kept: that of the step, and the next one's."""


class EpochRows:
    """Rows without end, epoch after epoch. An epoch's last row may be short, so that none holds samples of two.

    May be asked by several threads.

    Args:
        indices: The store's training samples, `[n]`.
        positions: Positions of each sample of the store by itself.
        shared: Which samples of the store share their beginning, if any do.
        seed: Determines the order.
        budget: Tokens of a row.
        start: Where in the endless stream of samples the first row begins; what is before is left out.
    """

    def __init__(
        self, indices: Indices, positions: Indices, shared: Shared | None, *, seed: int, budget: int, start: int = 0
    ) -> None:
        self._indices, self._positions, self._shared = indices, positions, shared
        self._seed, self._budget = seed, budget
        self._first, self._offset = divmod(start, len(indices))
        self._before = [0]  # rows before the first epoch, the second, and so on, as far as they were put into rows
        self._remembered: dict[int, Rows] = {}
        self._lock = threading.RLock()

    def before(self, epoch: int) -> int:
        """Rows before the epoch of this number, counted from the first one that is visited."""
        with self._lock:
            while len(self._before) <= epoch:
                self.epoch(len(self._before) - 1)
            return self._before[epoch]

    def epoch(self, epoch: int) -> Rows:
        """The rows of an epoch, with the samples as indices into the store."""
        with self._lock:
            if epoch in self._remembered:
                return self._remembered[epoch]
            if epoch >= len(self._before):
                self.before(epoch)
            rows = self._put_into_rows(epoch)
            if epoch == len(self._before) - 1:
                self._before.append(self._before[-1] + len(rows))
            self._remembered = {epoch: rows} | dict(list(self._remembered.items())[: _REMEMBERED - 1])
            return rows

    def place(self, number: int) -> tuple[int, int]:
        """The epoch that a row is in, and its number in that epoch."""
        with self._lock:
            while self._before[-1] <= number:
                self.epoch(len(self._before) - 1)
            epoch = bisect_right(self._before, number) - 1
            return epoch, number - self._before[epoch]

    def rows(self, first: int, last: int) -> Iterator[Indices]:
        """Rows `first` to `last`, each with its samples as indices into the store."""
        for number in range(first, last):
            epoch, row = self.place(number)
            yield self.epoch(epoch)[row]

    def _put_into_rows(self, epoch: int) -> Rows:
        order = epoch_order(self._seed, self._first + epoch, len(self._indices))
        samples = self._indices[order[self._offset :] if epoch == 0 else order]
        if self._shared is None:
            rows = fill_rows(self._positions[samples].tolist(), self._budget)
            return Rows(samples[rows.order], rows.ends)
        units, tokens = arrange(
            samples, self._positions, self._shared, seed=self._seed, epoch=self._first + epoch, budget=self._budget
        )
        rows = fill_rows(tokens, self._budget)
        sizes = np.diff(units.ends, prepend=0)[rows.order]
        ends = np.cumsum(sizes)
        members = np.repeat(units.ends[rows.order] - ends, sizes) + np.arange(len(samples))
        return Rows(units.order[members], ends[rows.ends - 1])
