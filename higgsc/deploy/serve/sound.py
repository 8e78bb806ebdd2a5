"""Audio in and out: what clients send as recordings, and the formats that they get."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.outcome import StepError
from higgsc.deploy.voice import Wave, read_reference

Format = Literal["wav", "flac", "pcm"]

MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "pcm": f"audio/pcm;rate={SAMPLE_RATE};encoding=signed-integer;bits=16",
}

MAX_CHANNELS = 2


def pcm(wave: Wave) -> bytes:
    """Samples as 16-bit little-endian integers without a header; what is beyond full scale is clipped."""
    return (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()


def encode(wave: Wave, form: Format) -> bytes:
    """Samples `[N]` at 24 kHz as a file, 16 bits."""
    if form == "pcm":
        return pcm(wave)
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(wave, -1, 1), SAMPLE_RATE, format=form.upper(), subtype="PCM_16")
    return stream.getvalue()


def read_upload(upload: BinaryIO, *, max_seconds: float) -> Wave:
    """A recording that came in from outside, as one that a voice can be taken from.

    Nothing that it says about itself is believed: samples are counted as they are decoded, so what unpacks to hours
    costs no more than `max_seconds`.

    Raises:
        StepError: It is no audio, or none that a voice can be taken from (65).
    """
    with tempfile.NamedTemporaryFile(prefix="higgsc-", suffix=".upload") as file:
        shutil.copyfileobj(upload, file)
        file.flush()
        path = Path(file.name)
        if (channels := _channels(path)) > MAX_CHANNELS:
            raise StepError(f"the recording has {channels} channels; at most {MAX_CHANNELS} are read")
        return read_reference(path, max_seconds=max_seconds)


def _channels(path: Path) -> int:
    try:
        with soundfile.SoundFile(path) as stream:
            return int(stream.channels)
    except soundfile.LibsndfileError as error:
        raise StepError("the recording is no audio that can be read: WAV, FLAC, MP3 and Ogg are") from error
