"""A checkpoint's files written again, some rows at a time.

As many threads as torch has work on blocks of rows, each alone. Another one waits for the disk, which takes a file
while it is being written; the system's memory that the file took is free then for what comes next. So writing needs no
more memory than reading, and a job's limit, which counts the page cache, is not in the way.
"""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open
from torch import Tensor

from higgsc.contract.outcome import StepError
from higgsc.deploy.weights import TensorInfo, Weights
from higgsc.deploy.workers import workers
from higgsc.train.checkpoints.tensor_file import header_of

COPY_BYTES = 2**22
"""Bytes of what stays that are copied at a time."""

SYNC_BYTES = 2**26
"""Bytes of a file after which the disk is asked to take what has been written: its end then has little to wait for."""

_IN_LINE = 8
"""Blocks in line for each thread: none waits, and what makes the rows of a tensor is not in memory for long."""

Rows = Callable[[Tensor, int, int], Tensor]
"""Makes new rows of a tensor's rows, given the first one's number and the number after the last. Several threads ask
at once; the new rows may be of any floating dtype."""

Change = Callable[[TensorInfo], Rows | None]
"""Asked of each tensor: what makes its new rows; None for a tensor that stays."""


class Rewriter:
    """Writes files of a checkpoint again; as a context manager, waits until they are on disk.

    When the block is interrupted, what was handed over before is still completed.

    Args:
        weights: The source.
        folder: Where to write; files of the same names are replaced.
        dtype: Dtype of the floating-point tensors written.
        rename: A tensor's name in the new files.
    """

    def __init__(
        self, weights: Weights, folder: Path, *, dtype: torch.dtype, rename: Callable[[str], str] = lambda name: name
    ) -> None:
        self._weights, self._folder, self._dtype, self._rename = weights, folder, dtype, rename
        self._threads = ExitStack()
        self._line: deque[Future[None]] = deque()
        self._pairs: list[_Pair] = []
        self._flushes: list[Future[None]] = []

    def __enter__(self) -> Rewriter:
        self._in_line = _IN_LINE * torch.get_num_threads()
        self._disk = self._threads.enter_context(ThreadPoolExecutor(1))
        self._pool = self._threads.enter_context(workers())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._threads.close()
        finally:
            for pair in self._pairs:
                pair.close()
        if error is None:
            for flush in self._flushes:
                flush.result()

    def write(self, file: str, change: Change, flushed: Callable[[], None]) -> None:
        """Begin to write one file, block by block.

        What neither changes nor becomes another dtype is copied within the kernel.

        Args:
            file: One of the files of the weights.
            change: What to do with a tensor.
            flushed: Called when the file is on disk, for one file after the other, by a thread.

        Raises:
            StepError: The file has become shorter than its header says (65).
            OSError: If the disk refuses. Both may be of an earlier file, or come when the context ends.
        """
        # Descending item size keeps every tensor aligned to its item size, as the safetensors library does.
        infos = sorted(
            (info for info in self._weights.tensors.values() if info.file == file),
            key=lambda info: (-info.stored_as(self._dtype).itemsize, self._rename(info.name)),
        )
        with safe_open(self._weights.folder / file, "pt") as opened:
            metadata = opened.metadata()
        header = header_of(
            {self._rename(info.name): (info.shape, info.stored_as(self._dtype)) for info in infos}, metadata
        )
        pair, parts = self._open(file), []
        pair.write(memoryview(header), 0)
        at = len(header)
        for info in infos:
            made, dtype = change(info), info.stored_as(self._dtype)
            size = math.prod(info.shape) * dtype.itemsize
            if made is None and dtype == info.dtype:
                parts += self._copy(pair, info.start, at, size)
            else:
                for first, end in info.blocks():
                    begin, stop = (at + row * info.row_values * dtype.itemsize for row in (first, end))
                    work = partial(self._block, pair, info, made, first, end, begin)
                    parts += self._submit(pair, work, stop - begin)
            at += size
        self._flush(pair, parts, flushed)

    def copy(self, file: str, flushed: Callable[[], None]) -> None:
        """Begin to copy one file as it is, by sharing its blocks on file systems that can; see `write`."""
        pair = self._open(file)
        self._flush(pair, self._copy(pair, 0, 0, (self._weights.folder / file).stat().st_size), flushed)

    def _open(self, file: str) -> _Pair:
        self._pairs.append(_Pair(self._weights.folder / file, self._folder / file))
        return self._pairs[-1]

    def _copy(self, pair: _Pair, start: int, at: int, size: int) -> list[Future[None]]:
        parts = []
        for done in range(0, size, COPY_BYTES):
            part = min(COPY_BYTES, size - done)
            parts += self._submit(pair, partial(pair.copy, start + done, at + done, part), part)
        return parts

    def _block(self, pair: _Pair, info: TensorInfo, made: Rows | None, first: int, end: int, place: int) -> None:
        rows = self._weights.read(info, first, end)
        result = (rows if made is None else made(rows, first, end)).to(info.stored_as(self._dtype))
        assert result.shape == rows.shape, f"{info.name}: {tuple(result.shape)} for {tuple(rows.shape)}"
        pair.write(bytes_of(result), place)

    def _submit(self, pair: _Pair, work: Callable[[], None], size: int) -> list[Future[None]]:
        """Have some bytes of a file written, and from time to time those before them taken by the disk."""
        while len(self._line) >= self._in_line:
            self._line.popleft().result()
        part = self._pool.submit(work)
        self._line.append(part)
        pair.unsynced += size
        if pair.unsynced < SYNC_BYTES:
            return [part]

        def sync() -> None:
            part.result()
            pair.sync()

        pair.unsynced = 0
        return [part, self._disk.submit(sync)]

    def _flush(self, pair: _Pair, parts: list[Future[None]], flushed: Callable[[], None]) -> None:
        def flush() -> None:
            for part in parts:
                part.result()
            pair.sync()
            pair.close()
            flushed()

        self._flushes.append(self._disk.submit(flush))


class _Pair:
    """A file and the one that is made of it, both open."""

    def __init__(self, source: Path, target: Path) -> None:
        self._path = source
        self._source = source.open("rb", buffering=0)
        self._target = target.open("wb", buffering=0)
        self.unsynced = 0
        """Bytes handed over since the last `sync`."""

    def write(self, data: memoryview, at: int) -> None:
        write_at(self._target.fileno(), data, at)

    def copy(self, start: int, at: int, size: int) -> None:
        """Copy bytes without reading them into the process; between file systems that is not possible."""
        source, target, end = self._source.fileno(), self._target.fileno(), start + size
        while start < end:
            try:
                copied = os.copy_file_range(source, target, end - start, start, at)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                data = os.pread(source, min(end - start, 2**20), start)
                write_at(target, memoryview(data), at)
                copied = len(data)
            if copied == 0:
                raise StepError("the file ends in the middle of a tensor", path=self._path)
            start, at = start + copied, at + copied

    def sync(self) -> None:
        """Wait until what has been written is on disk, and have the page cache forget it."""
        os.fsync(self._target.fileno())
        os.posix_fadvise(self._target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        self._source.close()
        self._target.close()


def bytes_of(rows: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, as they are in memory."""
    return rows.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_at(descriptor: int, data: memoryview, at: int) -> None:
    """Write all of some bytes at a place of a file.

    Raises:
        OSError: If the disk refuses.
    """
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
