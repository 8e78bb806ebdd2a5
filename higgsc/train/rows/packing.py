"""Filling rows of a token budget: which of the samples that come next share a row.

Rows keep the seeded order: a row takes the next samples as long as they fit, and what room is left then goes to the
samples further ahead that fill it best. So a row is a random draw with a filler or two, not a row of long samples or
one of short ones, as sorting would make it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

WINDOW = 2048
"""Units ahead that are looked at for a filler. More fill little better."""
_WASTE = 16
"""Tokens of room that one or two fillers may not quite leave; rather than more, another row order is tried."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Things in rows, one row after the other."""

    order: Indices
    """Their numbers, row by row."""
    ends: Indices
    """Where in `order` each row ends."""

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> Indices:
        """What is in a row."""
        return self.order[self.ends[row - 1] if row else 0 : self.ends[row]]


def fill_rows(lengths: Sequence[int], budget: int, window: int = WINDOW) -> Rows:
    """Put units into rows of at most `budget` tokens.

    Args:
        lengths: Tokens of each unit, in the order in which they are to be visited; none above the budget.
        budget: Tokens of a row.
        window: How many units ahead may be pulled forward to fill a row; 0 keeps the order as it is.
    """
    count = len(lengths)
    ahead = _Ahead(max(lengths, default=0))
    taken = bytearray(count)
    # A row is finished by two units that are looked for, so that is the room that is left for them.
    reserved = 2 * sum(lengths) / max(count, 1) if window else 0.0
    entered = 0
    order: list[int] = []
    ends: list[int] = []
    room = budget
    for head in range(count):
        while entered < min(head + 1 + window, count):
            ahead.add(entered, lengths[entered])
            entered += 1
        if taken[head]:
            continue
        if lengths[head] > room - reserved:
            fillers = ahead.filling(room) if window else []
            if not fillers and lengths[head] > room and window:
                fillers = ahead.fitting(room)
            if fillers or lengths[head] > room:
                left = room - sum(lengths[filler] for filler in fillers)
                if head not in fillers and lengths[head] <= left:
                    fillers.append(ahead.take(lengths[head]))
                for filler in fillers:
                    taken[filler] = True
                order += fillers
                ends.append(len(order))
                room = budget
            if taken[head]:
                continue
        ahead.take(lengths[head])
        order.append(head)
        room -= lengths[head]
    if len(order) > (ends[-1] if ends else 0):
        ends.append(len(order))
    return Rows(np.array(order, dtype=np.int64), np.array(ends, dtype=np.int64))


class _Ahead:
    """The units that may be taken next, by length.

    Which lengths there are is kept as the bits of a whole number, and in another one backwards: the best fit is the
    highest bit within the room, and two lengths that make up a sum are where the one meets the other, shifted.
    """

    def __init__(self, longest: int) -> None:
        self.lengths: dict[int, deque[int]] = {}
        self._longest = longest
        self._forwards = self._backwards = 0

    def add(self, unit: int, length: int) -> None:
        """One more; those of a length come in order."""
        if length in self.lengths:
            self.lengths[length].append(unit)
        else:
            self.lengths[length] = deque((unit,))
            self._flip(length)

    def take(self, length: int) -> int:
        """The next one of a length that there is."""
        waiting = self.lengths[length]
        unit = waiting.popleft()
        if not waiting:
            del self.lengths[length]
            self._flip(length)
        return unit

    def filling(self, room: int) -> list[int]:
        """One or two units that leave hardly anything of a room; none if there are none."""
        for wanted in range(room, max(room - _WASTE, 0), -1):
            if wanted in self.lengths:
                return [self.take(wanted)]
            if pair := self._pair(wanted):
                return [self.take(length) for length in pair]
        return []

    def fitting(self, room: int) -> list[int]:
        """As many units as fit into a room, the longest first."""
        found = []
        while fitting := self._forwards & ((2 << room) - 1):
            length = fitting.bit_length() - 1
            found.append(self.take(length))
            room -= length
        return found

    def _pair(self, total: int) -> tuple[int, int] | None:
        """Two lengths with this sum, as like as possible: those in the middle are the most, and are not missed."""
        shift = self._longest - total
        both = self._forwards & (self._backwards >> shift if shift >= 0 else self._backwards << -shift)
        half = total // 2
        if total % 2 == 0 and len(self.lengths.get(half, ())) == 1:
            both &= ~(1 << half)
        upper = both >> (half + total % 2)
        if not upper:
            return None
        longer = (upper & -upper).bit_length() - 1 + half + total % 2
        return longer, total - longer

    def _flip(self, length: int) -> None:
        self._forwards ^= 1 << length
        self._backwards ^= 1 << (self._longest - length)


def deal(costs: NDArray[np.float64], ranks: int) -> Indices:
    """Share the rows of an optimizer step among processes so that all have as much to do, at each row and in all.

    Rows are dealt out in turns of like rows, the dearest first; in each turn who has had least gets the dearest.

    Args:
        costs: Of each row; a multiple of `ranks`.
        ranks: Processes.

    Returns:
        Numbers of rows `[ranks, rows of each]`.
    """
    turns = np.argsort(-costs, kind="stable").reshape(-1, ranks)
    shares = np.empty((ranks, len(turns)), dtype=np.int64)
    loads = np.zeros(ranks)
    for turn, rows in enumerate(turns):
        least_first = np.argsort(loads, kind="stable")
        shares[least_first, turn] = rows
        loads[least_first] += costs[rows]
    return shares
