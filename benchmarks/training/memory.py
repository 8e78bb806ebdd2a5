"""The most memory that is in use during an optimizer step, as the device's own allocator gives it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "the measured step"


class Peak:
    """Bytes in use at most during one step, everything that was there before it included.

    On a GPU `torch.cuda.max_memory_allocated`. A CPU has no such counter: there the profiler writes down every
    allocation and release of torch's CPU allocator from the moment the model is built, and the largest sum within the
    step is the peak. What kernels allocate for themselves through that allocator counts on both; memory that is not
    torch's (the interpreter, numpy, the store's memory maps, BLAS libraries' own buffers) on neither.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        if device.type == "cpu":
            self._profile.start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The step to measure."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            yield
            self.bytes = torch.cuda.max_memory_allocated()
            return
        with record_function(MARK):
            yield
        self._profile.stop()
        self.bytes = self._highest()

    def _highest(self) -> int:
        results = self._profile.profiler
        assert results is not None
        assert results.kineto_results is not None
        events = results.kineto_results.events()
        (begin,) = (event.start_ns() for event in events if event.name() == MARK)
        changes = sorted(
            (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]  # not in torch's stub
            for event in events
            if event.name() == "[memory]"
        )
        in_use = highest = 0
        for when, change in changes:
            in_use += change
            if when >= begin:
                highest = max(highest, in_use)
        return highest
