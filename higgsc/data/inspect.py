"""One recording, looked at closely: whether it can be used, and how good it is."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyloudnorm
import soundfile

from higgsc.contract.jobs import DataLimits
from higgsc.data.formats.paths import confine
from higgsc.data.probe import Header, probe
from higgsc.data.records import AudioSpan

MAX_BYTES = 1 << 30
"""Size past which a file is not opened."""
DECLARED_SLACK_SECONDS = 0.5
"""How far a file's length may be from what the data says it is."""

_RATES = range(8_000, 192_001)
_SLACK_SECONDS = 0.1
_BLOCK = 65_536
_FRAMES_PER_SECOND = 50
_FULL_SCALE = 0.999
_SILENT = 1e-3
"""-60 dB of full scale, as the root mean square of a frame of 20 ms."""
_GATE_SECONDS = 0.4
"""Length of the blocks that loudness is measured in."""
_QUIET_LUFS, _LOUD_LUFS = -42.0, -8.0
"""Speech is published at -16 to -27; what is outside of these two was hardly meant."""
_EXTENSIONS = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG", ".opus": "OGG"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found out about a recording. What depends on decoding is None where only the header was read."""

    errors: tuple[str, ...] = ()
    """Why it cannot be used."""
    warnings: tuple[str, ...] = ()
    """What is odd about it: `8 kHz`, `clipping` and so on, each a kind, not a sentence."""
    seconds: float | None = None
    rate: int | None = None
    channels: int | None = None
    loudness: float | None = None
    """As ITU-R BS.1770 measures it, in LUFS: weighted as ears do, pauses left out. None below 0.4 s and in silence."""
    peak: float | None = None
    silence: float | None = None
    """Share of frames of 20 ms below -60 dB."""
    clipped: float | None = None
    """Share of samples at full scale."""
    content: str | None = None
    """Hash of the decoded samples, the same for the same sound in another lossless format."""


def inspect(span: AudioSpan, homes: tuple[Path, ...], limits: DataLimits, *, fast: bool) -> Finding:
    """Look at a recording.

    No header is believed: seconds and bytes are counted while decoding, so a small file that would unpack to hours
    costs no more than `limits.max_seconds`.

    Args:
        span: The recording, or the part of one.
        homes: Folders inside which it has to lie, links followed.
        limits: What is too short or too long.
        fast: Read the header alone.
    """
    try:
        path = confine(span.path, homes)
        if (size := path.stat().st_size) > MAX_BYTES:
            return Finding(errors=(f"{size / 1e9:.1f} GB, above the limit of {MAX_BYTES / 1e9:.1f} GB",))
        header = probe(path)
    except (ValueError, OSError) as error:
        return Finding(errors=(getattr(error, "strerror", None) or str(error),))
    if header.rate not in _RATES:
        return Finding(errors=(f"a sample rate of {header.rate} Hz; {_RATES[0]} to {_RATES[-1]} are read",))
    odd = _odd_header(span.path, header)
    if header.held < header.frames - _SLACK_SECONDS * header.rate:
        cut = f"cut short: the header claims {header.seconds:.2f} s, the file holds {header.held / header.rate:.2f} s"
        return Finding(errors=(cut,), warnings=odd, rate=header.rate, channels=header.channels)
    if not fast:
        return _decoded(span, path, header, limits, odd)
    seconds = _span_seconds(span, header.seconds)
    return Finding(
        errors=_length_errors(span, seconds, header.seconds, limits),
        warnings=odd,
        seconds=seconds,
        rate=header.rate,
        channels=header.channels,
    )


def _odd_header(path: Path, header: Header) -> tuple[str, ...]:
    odd = []
    named = _EXTENSIONS.get(path.suffix.lower())
    if named is not None and named != header.kind:
        odd.append(f"{header.kind} named {path.suffix.lower()}")
    if header.rate < 16_000:
        odd.append("narrow band")
    if header.channels > 2:
        odd.append("more than two channels")
    return tuple(odd)


def _span_seconds(span: AudioSpan, whole: float) -> float:
    start = span.offset or 0.0
    return max(whole - start, 0.0) if span.duration is None else min(span.duration, max(whole - start, 0.0))


def _length_errors(span: AudioSpan, seconds: float, whole: float, limits: DataLimits) -> tuple[str, ...]:
    start = span.offset or 0.0
    if start and start >= whole:
        return (f"ends before the offset of {start:g} s",)
    if span.duration is not None and seconds < span.duration - _SLACK_SECONDS:
        return (f"ends after {seconds:.2f} s, where {span.duration:.2f} s were announced",)
    if seconds < limits.min_seconds:
        return (f"lasts {seconds:.2f} s, less than {limits.min_seconds:g} s",)
    if seconds > limits.max_seconds:
        return (f"lasts more than {limits.max_seconds:g} s",)
    return ()


def declared_error(span: AudioSpan, finding: Finding) -> str | None:
    """How a recording's length differs from what a row says of it; rows that share a recording may say different."""
    if span.declared is None or finding.seconds is None:
        return None
    if abs(finding.seconds - span.declared) <= DECLARED_SLACK_SECONDS:
        return None
    return f"lasts {finding.seconds:.2f} s and not {span.declared:g} s as the data says"


def _decoded(span: AudioSpan, path: Path, header: Header, limits: DataLimits, odd: tuple[str, ...]) -> Finding:
    basics: dict[str, Any] = {"warnings": odd, "rate": header.rate, "channels": header.channels}
    start = round((span.offset or 0.0) * header.rate)
    if start and start >= header.frames:
        return Finding(errors=(f"ends before the offset of {span.offset:g} s",), **basics)
    wanted = None if span.duration is None else round(span.duration * header.rate)
    meter = Meter(header.rate)
    limit = int(limits.max_seconds * header.rate)
    try:
        with soundfile.SoundFile(path) as stream:
            stream.seek(start)
            while wanted is None or meter.count < wanted:
                size = _BLOCK if wanted is None else min(_BLOCK, wanted - meter.count)
                block = stream.read(size, dtype="float32", always_2d=True)
                if not len(block):
                    break
                meter.add(block)
                if meter.count > limit:
                    return Finding(errors=(f"lasts more than {limits.max_seconds:g} s",), **basics)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        return Finding(errors=(f"not audio that can be read: {error}".rstrip("."),), **basics)
    seconds = meter.count / header.rate
    if not meter.finite:
        return Finding(errors=("holds values that are not finite",), seconds=seconds, **basics)
    whole = start / header.rate + seconds if wanted is None else header.seconds
    if wanted is None and whole < header.seconds - _SLACK_SECONDS:
        cut = f"cut short: the header claims {header.seconds:.2f} s, {whole:.2f} s can be decoded"
        return Finding(errors=(cut,), seconds=seconds, **basics)
    errors = _length_errors(span, seconds, whole, limits)
    if not errors and not meter.peak:
        errors = ("silent from start to end",)
    return Finding(
        errors=errors,
        warnings=(*odd, *meter.warnings()),
        seconds=seconds,
        rate=header.rate,
        channels=header.channels,
        loudness=meter.loudness,
        peak=meter.peak,
        silence=meter.silence,
        clipped=meter.clipped,
        content=meter.content,
    )


@lru_cache(maxsize=16)
def _loudness_meter(rate: int) -> Any:
    return pyloudnorm.Meter(rate, block_size=_GATE_SECONDS)


class Meter:
    """Sums over the blocks of a recording; channels are averaged, as preparation does."""

    def __init__(self, rate: int) -> None:
        self.count, self.peak, self.finite = 0, 0.0, True
        self._rate, self._sum, self._at_full_scale = rate, 0.0, 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._mono: list[npt.NDArray[np.float32]] = []
        self._squares: list[npt.NDArray[np.float32]] = []
        self._left = np.zeros(0, dtype=np.float32)

    def add(self, block: npt.NDArray[np.float32]) -> None:
        self._hash.update(block.tobytes())
        self.count += len(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        self._mono.append(mono)
        peak = float(np.abs(block).max())
        if not math.isfinite(peak):
            self.finite = False
            return
        self.peak = max(self.peak, peak)
        if peak >= _FULL_SCALE:
            self._at_full_scale += int((np.abs(block).max(axis=1) >= _FULL_SCALE).sum())
        self._sum += float(mono.sum(dtype=np.float64))
        frame = self._rate // _FRAMES_PER_SECOND
        mono = np.concatenate((self._left, mono)) if len(self._left) else mono
        whole = len(mono) // frame * frame
        self._squares.append(np.square(mono[:whole].reshape(-1, frame)).mean(axis=1))
        self._left = mono[whole:]

    def warnings(self) -> tuple[str, ...]:
        """The kinds of what is odd about the sound."""
        odd = []
        if self.clipped > 1e-3:
            odd.append("clipping")
        if self.silence > 0.6:
            odd.append("mostly silent")
        if self.loudness is not None and self.loudness < _QUIET_LUFS:
            odd.append("very quiet")
        if self.loudness is not None and self.loudness > _LOUD_LUFS:
            odd.append("very loud")
        if abs(self._sum / max(self.count, 1)) > 0.02:
            odd.append("offset from zero")
        return tuple(odd)

    @property
    def clipped(self) -> float:
        return self._at_full_scale / max(self.count, 1)

    @property
    def silence(self) -> float:
        frames = self._frames()
        return float((frames < _SILENT**2).mean()) if len(frames) else 0.0

    @cached_property
    def loudness(self) -> float | None:
        if self.count < _GATE_SECONDS * self._rate:
            return None
        measured = float(_loudness_meter(self._rate).integrated_loudness(np.concatenate(self._mono)))
        return measured if math.isfinite(measured) else None

    @property
    def content(self) -> str:
        return self._hash.hexdigest()

    def _frames(self) -> npt.NDArray[np.float32]:
        return np.concatenate(self._squares) if self._squares else np.zeros(0, dtype=np.float32)
