"""The voice to speak in: a recording as codes, with what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from higgsc.catalog.codec import FRAMES_PER_SECOND, SAMPLE_RATE
from higgsc.contract.jobs import TextJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.audio import read_mono
from higgsc.data.codec import Codec
from higgsc.data.records import AudioSpan
from higgsc.data.text import clean_text
from higgsc.data.whisper import WhisperEncoder
from higgsc.train.speech.speak import Codes

MIN_REFERENCE_SECONDS = 0.5
"""Shortest reference; there is no voice to be heard in less."""

MAX_REFERENCE_SECONDS = 60.0
"""Longest reference that is read; the model was trained with references of some ten seconds."""

SILENCE = 10 ** (-60 / 20)
"""Peak, of full scale, below which a recording holds nothing: -60 dB."""

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A reference, encoded once and used for any number of texts."""

    codes: Codes
    """Of the recording, `[T, 8]`."""
    text: str
    """What it says, cleaned."""
    heard: Codes | None = None
    """What a Whisper heard of it, the bits of bfloat16 `[T, width]`; None if none listened."""

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.codes) / FRAMES_PER_SECOND


def spoken_text(text: str, options: TextJob) -> str:
    """A text in the form that was learned.

    Raises:
        StepError: It is empty, or holds a control token (2).
    """
    try:
        return clean_text(text, options)
    except ValueError as error:
        raise StepError(
            f"cannot speak this: {error}", code=ExitCode.USAGE, help="give what is said in plain words"
        ) from error


def read_reference(audio: Path | AudioSpan | Wave, *, max_seconds: float = MAX_REFERENCE_SECONDS) -> Wave:
    """A recording that a voice can be taken from: mono at 24 kHz, `[N]`.

    Raises:
        StepError: It is missing (66); or no audio, too short, too long, silent or not finite (65).
    """
    span = AudioSpan(audio) if isinstance(audio, Path) else audio
    if isinstance(span, AudioSpan):
        place: Path | None = span.path
        wave = read_mono(span.path, offset=span.offset, duration=span.duration, max_seconds=max_seconds)
    else:
        place, wave = None, span
    if wave.ndim != 1 or wave.dtype != np.float32:
        raise StepError(
            f"cannot use this reference: float32 samples of shape [N] are needed, not {wave.dtype} {list(wave.shape)}"
        )
    seconds = wave.size / SAMPLE_RATE
    if not MIN_REFERENCE_SECONDS <= seconds <= max_seconds:
        raise StepError(
            f"the reference lasts {seconds:.2f} s; {MIN_REFERENCE_SECONDS:g} to {max_seconds:g} s are needed",
            path=place,
            help="some ten seconds of clean speech of one voice are best",
        )
    if not np.isfinite(wave).all():
        raise StepError("the reference holds values that are not finite", path=place)
    if float(np.abs(wave).max()) < SILENCE:
        raise StepError("the reference is silent", path=place, help="give a recording of the voice")
    return wave


def encode_voice(
    codec: Codec, wave: Wave, text: str, options: TextJob, listener: WhisperEncoder | None = None
) -> Voice:
    """A reading of `read_reference` as a voice.

    Args:
        codec: The audio tokenizer.
        wave: The recording.
        text: What it says, as people write it.
        options: How texts are normalised.
        listener: Listens too, for a model that was trained with it.

    Raises:
        StepError: The text is empty, or holds a control token (2).
    """
    heard = None if listener is None else listener.encode(wave)
    return Voice(text=spoken_text(text, options), codes=codec.encode(wave), heard=heard)
