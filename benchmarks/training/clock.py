"""What all ways of training are timed by."""

from __future__ import annotations

import time

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu`: seconds of processor time, of all threads. For a machine that others use as well, with one thread."""
WORDS = {"wall": "wall-clock time", "cpu": "processor time, of all threads"}
_chosen = ["wall"]


def choose(name: str) -> None:
    """Time by another clock from here on."""
    _chosen[0] = name


def now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return CLOCKS[_chosen[0]]()
