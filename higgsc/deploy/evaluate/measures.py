"""What can be told from a recording and its codes alone, and what it comes to over all prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import soundfile

from higgsc.contract.evaluation import Heard, Prompt, Spoken, Totals
from higgsc.data.inspect import Meter
from higgsc.deploy.evaluate.words import error_rates
from higgsc.train.speech.speak import Codes

FRAME_SECONDS = 0.02
HeardT = TypeVar("HeardT", bound=Heard)


def code_accuracy(spoken: Codes, target: Codes) -> float:
    """Share of codes that are the recording's, over the longer of the two; 1 only if they are identical.

    Low is no fault where codes are sampled: the same sentence can be said in many ways. It is telling on what
    the model has memorised.
    """
    frames = min(len(spoken), len(target))
    equal = int((spoken[:frames] == target[:frames]).sum())
    return equal / float(max(len(spoken), len(target)) * target.shape[1])


def read_back(wav: Path) -> npt.NDArray[np.float32]:
    """The samples of a file that this step wrote, mono `[N]`: what is measured is what can be listened to."""
    samples: npt.NDArray[np.float32] = soundfile.read(wav, dtype="float32")[0]
    return samples


def heard(wav: Path) -> Heard:
    """What the file's samples say; the rest is for the models that listen.

    Silence and clipping are those of `higgsc data validate`.
    """
    rate = int(soundfile.info(wav).samplerate)
    samples = read_back(wav)
    silence = clipped = None
    if len(samples):
        meter = Meter(rate)
        meter.add(samples[:, None])
        clipped = meter.clipped
        silence = meter.silence if len(samples) >= FRAME_SECONDS * rate else None
    return Heard(
        wav=wav.name,
        seconds=len(samples) / rate,
        silence=silence,
        clipped=clipped,
        transcript=None,
        word_errors=None,
        character_errors=None,
        similarity=None,
    )


def totals(prompts: Sequence[Prompt], of: Callable[[Prompt], Heard]) -> Totals:
    """Over all prompts, by one voice.

    Args:
        prompts: What was said.
        of: Takes the voice out of a prompt; `Spoken` if it is a model's.
    """
    told = [of(prompt) for prompt in prompts]
    spoken = [one for one in told if isinstance(one, Spoken)]
    seconds, took = sum(one.seconds for one in told), sum(one.took_seconds for one in spoken)
    transcribed = [
        (prompt.target_text, one.transcript)
        for prompt, one in zip(prompts, told, strict=True)
        if one.transcript is not None
    ]
    errors = (
        error_rates([text for text, _ in transcribed], [words for _, words in transcribed]) if transcribed else None
    )
    return Totals(
        spoken=len(told),
        finished=sum(one.finished for one in spoken) if spoken else None,
        silence=_mean(told, lambda one: one.silence),
        clipped=_mean(told, lambda one: one.clipped),
        duration_ratio=seconds / sum(prompt.recording.seconds for prompt in prompts) if spoken else None,
        code_accuracy=_mean(spoken, lambda one: one.code_accuracy),
        samples_per_second=len(spoken) / took if spoken else None,
        real_time_factor=took / seconds if spoken and seconds else None,
        word_errors=None if errors is None else errors.words,
        character_errors=None if errors is None else errors.characters,
        similarity=_mean(told, lambda one: one.similarity),
    )


def _mean(told: Sequence[HeardT], of: Callable[[HeardT], float | None]) -> float | None:
    """Over those that have the figure; None if none has."""
    values = [value for one in told if (value := of(one)) is not None]
    return fmean(values) if values else None
