"""How fast a training is: tokens, samples and speech by time, the share of the GPU's peak, memory, time to the end."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.codec import CODEBOOKS, EXTRA_ROWS_PER_CLIP, FRAMES_PER_SECOND
from higgsc.catalog.gpus import gpu_by_driver_name
from higgsc.contract.jobs import TrainJob
from higgsc.data.store import Store
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.plan import setup_of

INTERVALS_OF_THE_PACE = 20
"""Sets of figures over which the pace is averaged that the time to the end is guessed from."""


class Window(BaseModel):
    """What was trained on since the last figures, by all processes."""

    model_config = ConfigDict(extra="forbid")

    samples: int = 0
    tokens: int = 0
    """Positions that were computed, text and audio: what samples share counts once."""
    squares: int = 0
    """Twice the pairs of positions of which one sees the other: what attention costs by."""
    audio_rows: int = 0
    frames: int = 0
    """Of the targets: speech that the model learned to say."""
    seconds: float = 0.0
    """Of attempts before this one."""


class Speed:
    """Measures from one set of figures to the next.

    Args:
        job: Says how much arithmetic a token costs.
        mesh: The processes.
        store: Says how long the samples are.
    """

    def __init__(self, job: TrainJob, mesh: Mesh, store: Store) -> None:
        self._job, self._mesh, self._store = job, mesh, store
        self._peak = peak_flops(mesh.device) if job.precision == "bf16" else None
        self.load(Window())

    def load(self, window: Window) -> None:
        """Go on with a window that an earlier attempt began."""
        self._window = window.model_copy()
        self._since = time.monotonic() - window.seconds

    def save(self) -> Window:
        """The window as it is now."""
        return self._window.model_copy(update={"seconds": time.monotonic() - self._since})

    def add(self, samples: NDArray[np.int64], spared: NDArray[np.int64]) -> None:
        """Count the samples of an optimizer step, over all processes, and what each shares with the one before it."""
        window, store = self._window, self._store
        frames, own = store.target_frames[samples], store.lengths[samples] - spared
        window.samples += len(samples)
        window.tokens += int(own.sum())
        window.squares += int((own**2 + 2 * own * spared).sum())
        window.frames += int(frames.sum())
        references = np.where(spared > 0, 0, store.reference_frames[samples] + EXTRA_ROWS_PER_CLIP)
        window.audio_rows += int((references + frames + EXTRA_ROWS_PER_CLIP).sum())

    def figures(self) -> dict[str, float]:
        """The window's figures by name; every process has to ask."""
        window = self.save()
        found = {
            "tokens_per_second": window.tokens / window.seconds,
            "samples_per_second": window.samples / window.seconds,
            "speech_hours_per_hour": window.frames / FRAMES_PER_SECOND / window.seconds,
        }
        if self._peak is not None and window.tokens:
            found["mfu"] = utilisation(self._job, window, peak=self._peak * self._mesh.world_size)
        if self._mesh.device.type == "cuda":
            highest = torch.tensor(torch.cuda.max_memory_allocated() / 1e9, device=self._mesh.device)
            found["gpu_memory_gb"] = -float(self._mesh.minimum(-highest))
        return found

    def reset(self) -> None:
        """Begin a new window."""
        self.load(Window())
        if self._mesh.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()


class Pace:
    """Guesses the time to the end from the pace of the last intervals, validations and checkpoints included."""

    def __init__(self, total: int, start: int) -> None:
        self._total = total
        self._marks = deque([(start, time.monotonic())], maxlen=INTERVALS_OF_THE_PACE)

    def mark(self, done: int) -> None:
        """Note that `done` optimizer steps are done now."""
        self._marks.append((done, time.monotonic()))

    def eta(self, done: int) -> float | None:
        """Seconds to the end; None before the first step."""
        first, since = self._marks[0]
        return (self._total - done) * (time.monotonic() - since) / (done - first) if done > first else None


def utilisation(job: TrainJob, window: Window, *, peak: float) -> float:
    """Model FLOPs utilisation (Chowdhery et al., 2022): the arithmetic that the training needs, as a share of the peak.

    Needed are `flops_per_token` with a causal attention, so what is computed twice or masked does not count.

    Args:
        job: Says what is trained.
        window: What was trained on, and in how many seconds.
        peak: FLOP/s of all GPUs together.
    """
    setup = setup_of(job)
    keys = window.squares / window.tokens / 2
    needed = flops_per_token(
        setup,
        keys=keys,
        audio_share=window.audio_rows / window.tokens,
        labelled=(window.frames + CODEBOOKS * window.samples) / window.tokens,
    )
    return needed * job.mesh.tensor * window.tokens / window.seconds / peak


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where the catalog does not know it."""
    if device.type != "cuda":
        return None
    gpu = gpu_by_driver_name(torch.cuda.get_device_name(device))
    return None if gpu is None else gpu.bf16_tflops_dense * 1e12
