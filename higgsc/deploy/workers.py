"""Threads for work on pieces of a tensor that are too small to be divided any further."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, each of which computes alone; while it lasts, so does everything else.

    torch divides every operation among its threads, which wait for each other by turning in circles. On pieces of a
    megabyte that takes longer than the work, and twenty times as long where others use the processor too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
