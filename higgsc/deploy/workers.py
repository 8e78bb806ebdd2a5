"""Threads for work on pieces of a tensor that are too small to be divided any further."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each of which computes alone; while it lasts, so does everything else.

    torch divides every operation among its threads, which wait for each other by turning in circles. On pieces of some
    megabytes that takes longer than the work, and twenty times as long where others use the processor too.
    """
    _keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Have glibc keep what a block leaves free for the next one, up to 64 MB a thread.

    It would give it back to the system, which clears every page before it hands it out again: that takes as long as
    the arithmetic. It keeps twice the largest mapped piece that was ever freed, of those up to 32 MB (mallopt(3),
    `M_MMAP_THRESHOLD`), so one is freed here, untouched.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
