"""Curricula: what changes in the course of a training, as functions of the step alone.

Weights: factors on the weights of the loss, linear between given points. Lengths: at first only short samples, then
longer and longer ones. Neither has a state, so a training that goes on from a checkpoint meets what it would have met.
"""

from __future__ import annotations

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
        global_samples: Samples of an optimizer step.
        stream: From a first and a last position, the numbers of the samples there, 0 to n-1; each n of them are all.

    Raises:
        StepError: If no sample is short enough for the first step.
    """

    def __init__(
        self, job: LengthJob, frames: Indices, *, global_samples: int, stream: Callable[[int, int], Indices]
    ) -> None:
        self._job, self._frames, self._size, self._stream = job, frames, global_samples, stream
        self._batches: list[Indices] = []
        self._position = 0  # of the stream, behind those batches
        if frames.min() > self.limit(0) * FRAMES_PER_SECOND:
            shortest, fifth = frames.min() / FRAMES_PER_SECOND, np.quantile(frames, 0.2) / FRAMES_PER_SECOND
            raise StepError(
                f"no sample is short enough to begin with: the shortest has {shortest:.1f} s, but "
                f"`training.curriculum.start_seconds` is {job.start_seconds:g}",
                help=f"a fifth of the samples has at most {fifth:.1f} s",
            )

    def limit(self, step: int) -> float:
        """Seconds of the longest clip that optimizer step `step` (0-based) takes."""
        job = self._job
        return job.start_seconds + (job.max_seconds - job.start_seconds) * min(1.0, step / job.steps)

    def batch(self, step: int) -> Indices:
        """Numbers of the samples of optimizer step `step` (0-based), `[global_samples]`."""
        while len(self._batches) <= step and len(self._batches) < self._job.steps:
            self._batches.append(self._next(self.limit(len(self._batches)) * FRAMES_PER_SECOND))
        if step < len(self._batches):
            return self._batches[step]
        first = self._position + (step - self._job.steps) * self._size
        return self._stream(first, first + self._size)

    def _next(self, longest: float) -> Indices:
        taken: list[Indices] = []
        missing = self._size
        while missing:
            ahead = self._stream(self._position, self._position + self._size)
            fit = np.flatnonzero(self._frames[ahead] <= longest)[:missing]
            taken.append(ahead[fit])
            missing -= len(fit)
            # Behind the last that was needed; what is left of the stretch is for the next step.
            self._position += self._size if missing else int(fit[-1]) + 1
        return np.concatenate(taken)
