"""What listens to a job's recordings: the codec, and a Whisper where the job names one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from higgsc.contract.jobs import SpeechJob, StepContext
from higgsc.data.cache import CodeCache
from higgsc.data.clips import ClipEncoder, Encoder, recipe_of
from higgsc.data.loading import load_codec
from higgsc.data.places import Places
from higgsc.data.whisper import WhisperEncoder

Kind = Literal["codec", "whisper"]


@contextmanager
def open_encoder(
    kind: Kind, job: SpeechJob, context: StepContext, *, places: Places | None = None, readers: int = 1
) -> Iterator[ClipEncoder]:
    """One of them with its part of the cache, which is closed at the end.

    Args:
        kind: Which one.
        job: The job.
        context: Of the step.
        places: Finds the audio; of its own if not given.
        readers: Threads that read and resample.

    Raises:
        StepError: It cannot be loaded; see `load_codec` and `WhisperEncoder.load`.
    """
    encoder = _load(kind, job, context)
    with CodeCache(context.path(job.cache), recipe_of(encoder), width=encoder.width) as cache:
        yield ClipEncoder(encoder, cache, places=places or Places(job, context), limits=job.limits, readers=readers)


def _load(kind: Kind, job: SpeechJob, context: StepContext) -> Encoder:
    if kind == "codec":
        return load_codec(job.model, root=context.root, device=job.device)
    assert job.model.whisper is not None, "a job that is listened to names who listens"
    return WhisperEncoder.load(job.model.whisper, root=context.root, device=job.device)
