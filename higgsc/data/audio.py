"""Audio files to samples and back: any format that libsndfile reads in, 24 kHz mono out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.outcome import ExitCode, StepError

Wave = npt.NDArray[np.float32]

RESAMPLER = "HQ"
"""Quality of soxr's resampling."""

_SAMPLE_RATES = range(8_000, 192_001)
_BLOCK = 65_536
_SLACK_SECONDS = 0.1
"""How much earlier than announced audio may end: data rounds lengths, and codecs pad."""


def read_mono(path: Path, *, offset: float | None = None, duration: float | None = None, max_seconds: float) -> Wave:
    """Read an audio file, or a part of one, as 24 kHz mono.

    Channels are averaged. No header is believed: the limit counts samples as they are decoded, so a small
    file that would unpack to hours costs no more than `max_seconds`.

    Args:
        path: The file.
        offset: Where the part starts, in seconds; None is the start.
        duration: Length of the part in seconds; None is up to the end.
        max_seconds: Longest audio that is accepted.

    Returns:
        Samples `[N]`, float32, full scale at 1.

    Raises:
        StepError: The file is missing (66); or is no audio, empty, too long, cut short, or holds values that
            are not finite (65). The error names the file.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise StepError(f"the audio file {what}", code=ExitCode.MISSING_INPUT, path=path)
    try:
        with soundfile.SoundFile(path) as stream:
            samples, rate = _decode(stream, path, offset or 0.0, duration, max_seconds), stream.samplerate
    # A TypeError is how soundfile says that a file named *.raw has no header.
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise StepError(f"not audio that can be read: {error}".rstrip("."), path=path) from error
    if not len(samples):
        raise StepError("the audio is empty", path=path)
    if not np.isfinite(samples).all():
        raise StepError("the audio holds values that are not finite", path=path)
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality=RESAMPLER)
    return np.ascontiguousarray(samples, dtype=np.float32)


def write_wav(path: Path, wave: Wave) -> None:
    """Write 24 kHz mono as 16-bit WAV, whole or not at all; values beyond full scale are clipped.

    Args:
        path: The destination; its folder is made.
        wave: Samples `[N]`.

    Raises:
        ValueError: The array has another shape, or values that are not finite.
    """
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"expected finite samples of shape [N], got {list(wave.shape)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            soundfile.write(stream, np.clip(wave, -1, 1), SAMPLE_RATE, format="WAV", subtype="PCM_16")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _decode(stream: soundfile.SoundFile, path: Path, offset: float, duration: float | None, max_seconds: float) -> Wave:
    rate = stream.samplerate
    if rate not in _SAMPLE_RATES:
        raise StepError(f"a sample rate of {rate} Hz; {_SAMPLE_RATES[0]} to {_SAMPLE_RATES[-1]} are read", path=path)
    limit = int(max_seconds * rate)
    wanted = None if duration is None else round(duration * rate)
    too_long = f"the audio lasts more than {max_seconds:g} s"
    if wanted is not None and wanted > limit:
        raise StepError(too_long, path=path)
    start = round(offset * rate)
    if start:
        if start >= stream.frames:
            raise StepError(f"the audio ends before the offset of {offset:g} s", path=path)
        stream.seek(start)
    blocks: list[Wave] = []
    total = 0
    while wanted is None or total < wanted:
        block = stream.read(_BLOCK if wanted is None else min(_BLOCK, wanted - total), dtype="float32", always_2d=True)
        if not len(block):
            break
        total += len(block)
        if total > limit:
            raise StepError(too_long, path=path)
        blocks.append(block.mean(axis=1))
    if not blocks:
        return np.zeros(0, dtype=np.float32)
    announced = wanted if wanted is not None else stream.frames - start
    if total < announced - _SLACK_SECONDS * rate:
        raise StepError(
            f"the audio ends after {total / rate:.2f} s, where {announced / rate:.2f} s were announced",
            path=path,
        )
    return np.concatenate(blocks)
