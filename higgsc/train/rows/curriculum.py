"""Curricula: what changes in the course of a training, as functions of the step alone.

Weights: factors on the weights of the loss, linear between given points. Lengths: at first only short samples, then
longer and longer ones. Neither has a state, so a training that goes on from a checkpoint meets what it would have met.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from higgsc.catalog.codec import FRAMES_PER_SECOND
from higgsc.contract.jobs import LengthJob, LossJob, PointJob
from higgsc.contract.outcome import StepError

Indices = NDArray[np.int64]


def weights_at(loss: LossJob, step: int) -> LossJob:
    """The weights of optimizer step `step` (0-based): those of the job, times the factors of its schedule."""
    schedule = loss.schedule
    if schedule is None:
        return loss
    changed = {"text": loss.text * _factor(schedule.text, step), "audio": loss.audio * _factor(schedule.audio, step)}
    contrastive = loss.contrastive
    if contrastive is not None:
        weight = contrastive.weight * _factor(schedule.contrastive, step)
        contrastive = contrastive.model_copy(update={"weight": weight})
    codebooks = loss.codebooks
    if schedule.codebooks:
        steps = [point.step for point in schedule.codebooks]
        columns = zip(*(point.factors for point in schedule.codebooks), strict=True)
        codebooks = tuple(
            weight * float(np.interp(step, steps, factors)) for weight, factors in zip(codebooks, columns, strict=True)
        )
    return loss.model_copy(update={**changed, "contrastive": contrastive, "codebooks": codebooks})


def _factor(points: Sequence[PointJob], step: int) -> float:
    """Linear between two points, constant before the first and after the last; 1 without any."""
    if not points:
        return 1.0
    return float(np.interp(step, [point.step for point in points], [point.factor for point in points]))


class LengthCurriculum:
    """Which samples of an endless stream each step takes while some are still too long.

    Those are passed over, and their turn comes again in the next epoch. Once none is too long, the stream goes on from
    where it is then.

    Args:
        job: How the longest sample that is taken grows.
        frames: Frames of the longer clip of each training sample, `[n]`.
        stream: From a first and a last position, the numbers of the samples there, 0 to n-1; each n of them are all.
        enough: How many of these numbers make up a step; None if they are too few.
        stretch: How far to look at a time, in samples.

    Raises:
        StepError: If no sample is short enough for the first step.
    """

    def __init__(
        self,
        job: LengthJob,
        frames: Indices,
        *,
        stream: Callable[[int, int], Indices],
        enough: Callable[[Indices], int | None],
        stretch: int,
    ) -> None:
        self._job, self._frames, self._stream, self._enough, self._stretch = job, frames, stream, enough, stretch
        self._batches: list[Indices] = []
        self._position = 0  # of the stream, behind those batches
        self._lock = threading.Lock()  # batches are asked for ahead of time, by another thread
        if frames.min() > self.limit(0) * FRAMES_PER_SECOND:
            shortest, fifth = frames.min() / FRAMES_PER_SECOND, np.quantile(frames, 0.2) / FRAMES_PER_SECOND
            raise StepError(
                f"no sample is short enough to begin with: the shortest has {shortest:.1f} s, but "
                f"`training.curriculum.start_seconds` is {job.start_seconds:g}",
                help=f"a fifth of the samples has at most {fifth:.1f} s",
            )

    @property
    def steps(self) -> int:
        """Optimizer steps until nothing is too long."""
        return self._job.steps

    @property
    def end(self) -> int:
        """Where in the stream the step after those goes on."""
        self.batch(self.steps - 1)
        return self._position

    def limit(self, step: int) -> float:
        """Seconds of the longest clip that optimizer step `step` (0-based) takes."""
        job = self._job
        return job.start_seconds + (job.max_seconds - job.start_seconds) * min(1.0, step / job.steps)

    def batch(self, step: int) -> Indices:
        """Numbers of the samples of optimizer step `step` (0-based), below `steps`."""
        with self._lock:
            while len(self._batches) <= step:
                self._batches.append(self._next(self.limit(len(self._batches)) * FRAMES_PER_SECOND))
            return self._batches[step]

    def _next(self, longest: float) -> Indices:
        start, stretch = self._position, self._stretch
        while True:
            ahead = self._stream(start, start + stretch)
            fit = np.flatnonzero(self._frames[ahead] <= longest)
            count = self._enough(ahead[fit])
            if count is not None:
                # Behind the last that was needed; what is left of the stretch is for the next step.
                self._position = start + int(fit[count - 1]) + 1
                return ahead[fit[:count]]
            stretch *= 2
