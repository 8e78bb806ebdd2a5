"""Steps' rows made ahead of time by a thread, so that the GPU does not wait for the host.

Nothing of a row depends on chance or on the steps before, so the training is the same however far ahead they are made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from higgsc.train.rows.inputs import Inputs, Row, StepInput

AHEAD = 4
"""Rows, and beginnings of steps, that are made ahead: enough for a row that takes long, such as the first of an epoch,
and some megabytes each."""

logger = logging.getLogger(__name__)


class _Buffer:
    """What the thread has made and the training has not taken yet."""

    def __init__(self, size: int) -> None:
        self._size, self._items = size, deque[StepInput | Row | BaseException]()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: StepInput | Row | BaseException) -> bool:
        """Whether it is wanted; waits for room."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._size or self._closed)
            self._items.append(item)
            self._changed.notify_all()
            return not self._closed

    def take(self) -> StepInput | Row | BaseException:
        """The next; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Nothing is wanted any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Ahead:
    """The steps' inputs, one after the other; a context manager, at whose end the thread has ended too.

    Args:
        inputs: Makes them.
        last: The number of the batch behind the last.
        ahead: Rows that are made ahead.
    """

    def __init__(self, inputs: Inputs, last: int, ahead: int = AHEAD) -> None:
        self._inputs, self._last, self._size = inputs, last, ahead
        self._thread: threading.Thread | None = None
        self._expected = -1
        self._left = 0
        self.made = self.waited = 0.0
        """Seconds that the thread has spent on steps, and that the training has waited for it."""
        self.steps = 0
        """Steps that were asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if self.steps:
            per_step = 1000 / self.steps
            logger.info(
                "rows of %d steps: %.1f ms a step to make ahead, of which %.1f ms were waited for",
                self.steps, self.made * per_step, self.waited * per_step,
            )  # fmt: skip

    def step(self, number: int) -> StepInput:
        """The input of a batch; its rows come from `rows`. Fastest for the one after the last that was asked for.

        Raises:
            StepError: If one of its samples cannot be read.
        """
        if number != self._expected or self._left or self._thread is None:
            self._end()
            self._begin(number)
        found = self._next()
        assert isinstance(found, StepInput), "a step comes before its rows"
        self._expected, self._left = number + 1, len(found.rows)
        self.steps += 1
        return found

    def rows(self) -> Iterator[Row]:
        """The rows of this process in the step that was asked for last.

        Raises:
            StepError: If a sample cannot be read.
        """
        while self._left:
            row = self._next()
            assert isinstance(row, Row), "a step has as many rows as it says"
            self._left -= 1
            yield row

    def _begin(self, first: int) -> None:
        self._buffer = _Buffer(self._size)
        self._thread = threading.Thread(target=self._make, args=(first, self._buffer), name="rows", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        """Stop the thread, and forget what it has made."""
        if self._thread is None:
            return
        self._buffer.close()
        self._thread.join()
        self._thread, self._expected, self._left = None, -1, 0

    def _next(self) -> StepInput | Row:
        since = time.perf_counter()
        found = self._buffer.take()
        self.waited += time.perf_counter() - since
        if isinstance(found, BaseException):
            self._end()
            raise found
        return found

    def _make(self, first: int, buffer: _Buffer) -> None:
        try:
            self._inputs.use_device()
            for number in range(first, self._last):
                since = time.perf_counter()
                step = self._inputs.step(number)
                self.made += time.perf_counter() - since
                if not buffer.put(step):
                    return
                for samples in step.rows:
                    since = time.perf_counter()
                    row = self._inputs.row(samples)
                    self.made += time.perf_counter() - since
                    if not buffer.put(row):
                        return
        except BaseException as error:  # noqa: BLE001  # the training has to hear of it, or it would wait for ever
            buffer.put(error)
