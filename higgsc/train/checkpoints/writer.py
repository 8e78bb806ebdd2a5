"""Checkpoints of an adapter are written beside the training: the steps wait for a copy in memory, never for a disk.

What is to be saved is copied into buffers of the first process (`HostCopy`). A thread writes, hashes, flushes and
renames, one checkpoint at a time (`BackgroundWriter`). An error there ends the training at the next vote of the
processes; whoever stops or finishes waits for the thread first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

PINNED_BYTES = 8 << 30
"""Up to here, buffers for what comes from a GPU are page-locked: only then does the copy run without the host."""

logger = logging.getLogger(__name__)


class HostCopy:
    """Copies of tensors in memory that is used again for the next copies.

    From a GPU, the copies take their turn among its work: whatever changes a tensor afterwards comes after them.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._buffers: dict[str, Tensor] = {}
        self._arrived = torch.cuda.Event() if self._gpu else None  # type: ignore[no-untyped-call]
        self._pinned = 0

    @property
    def size(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def reserve(self, name: str, like: Tensor) -> Tensor:
        """Memory for the tensor of that name; taken before the first step, it costs no step its time."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            size = like.numel() * like.element_size()
            pin = self._gpu and self._pinned + size <= PINNED_BYTES
            self._pinned += size if pin else 0
            buffer = self._buffers[name] = torch.empty(like.shape, dtype=like.dtype, pin_memory=pin)
        return buffer

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Begin to copy a tensor; what comes back may be read after `wait`."""
        return self.reserve(name, tensor).copy_(tensor, non_blocking=True)

    def begun(self) -> None:
        """All copies are under way."""
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> None:
        """Until all copies are there; from any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()


class BackgroundWriter:
    """Does one piece of work at a time in a thread; as a context manager, it waits for the last one at its end."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._work: Future[object] | None = None

    @property
    def failed(self) -> bool:
        """Whether the work has failed, and nobody has been told."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def start(self, work: Callable[[], object]) -> None:
        """Begin a piece of work; the one before has to be finished."""
        assert self._work is None, "finish the work before first"
        self._work = self._threads.submit(work)

    def finish(self) -> None:
        """Wait for the work.

        Raises:
            BaseException: What the work has failed with.
        """
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif self._work is not None and (second := self._work.exception()) is not None:
            # The training ends with the first error, which this one must not hide.
            logger.error("the last checkpoint could not be written: %s", second)
