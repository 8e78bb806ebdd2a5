"""Audio files to codes: read, checked, and encoded unless the cache has them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.jobs import DataLimits
from higgsc.contract.outcome import StepError
from higgsc.contract.receipts import sha256_file
from higgsc.data.audio import RESAMPLER, Wave, read_mono
from higgsc.data.cache import CodeCache, Entry, Part, Stamp
from higgsc.data.places import Places
from higgsc.data.records import AudioSpan, CloningSample

_DECLARED_SLACK_SECONDS = 0.5
"""How far a file's length may be from what the data says it is."""
_AHEAD = 1024
"""Verdicts that may wait for one that takes longer."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Audio that has codes."""

    part: Part
    entry: Entry

    @property
    def seconds(self) -> float:
        return self.entry.samples / SAMPLE_RATE


Verdict = Clip | str
"""A clip, or why there is none."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a reading thread found: the part's content, and its samples unless they are not needed."""

    part: Part
    stamp: Stamp | None
    wave: Wave | None


class Encoder(Protocol):
    """What makes rows of 16-bit numbers of audio, 25 a second: the codec, or a Whisper."""

    device: torch.device

    @property
    def kind(self) -> str:
        """Its word in a recipe."""

    @property
    def width(self) -> int:
        """Numbers of a row."""

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give equal rows."""

    def encode(self, wave: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Mono samples at 24 kHz, float32 `[N]`, to rows `[T, width]`."""


def recipe_of(encoder: Encoder) -> dict[str, Any]:
    """What codes depend on besides the audio. A GPU rounds in another way than a CPU, and now and then a code turns
    out differently."""
    resampler = f"soxr {soxr.__libsoxr_version__} {RESAMPLER}"
    made_by = {encoder.kind: encoder.fingerprint}
    return made_by | {"rate": SAMPLE_RATE, "resampler": resampler, "device": encoder.device.type}


class ClipEncoder:
    """Encodes audio one clip at a time, while threads read and resample the next ones.

    Not in batches: already the same clip alone and in a batch of equal lengths has codes that differ now and then,
    because other convolution kernels round differently (measured: 7 of 3,200 codes in a batch of 16), and the store
    would depend on what was encoded together.
    """

    def __init__(
        self, codec: Encoder, cache: CodeCache, *, places: Places, limits: DataLimits, readers: int = 1
    ) -> None:
        """Prepare to encode.

        Args:
            codec: The codec, or what else listens.
            cache: Where its codes are kept; made with `recipe_of(codec)`.
            places: Finds the audio.
            limits: Which audio is usable.
            readers: Threads that read and resample.
        """
        self.codec, self.cache = codec, cache
        self._places, self._limits, self._readers = places, limits, readers
        self._hashing = threading.Lock()
        self._hashed: dict[Stamp, str] = {}
        self.encoded = 0
        """Clips that went through the codec."""
        self.seconds = 0.0
        """Of audio that went through the codec."""

    def known(self, span: AudioSpan) -> Verdict | None:
        """The verdict on audio that was encoded before and whose file has not changed; None without reading it."""
        try:
            stamp = self._places.stamp(span.path)
        except OSError:
            return None
        content = self.cache.content(stamp) if stamp is not None else None
        if content is None:
            return None
        part = Part(content, span.offset, span.duration)
        entry = self.cache.entry(part)
        return None if entry is None else self._judge(Clip(part, entry))

    def clips(self, spans: Iterable[AudioSpan]) -> Iterator[tuple[AudioSpan, Verdict]]:
        """Encode what has no codes yet; each span with its verdict, in order.

        Raises:
            StepError: The codes cannot be kept (74).
        """
        # PyTorch splits its work by the number of threads, which must not show in the codes; many clips at a time
        # are what processes are for.
        threads = torch.get_num_threads()
        on_cpu = self.codec.device.type == "cpu"
        if on_cpu:
            torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(self._readers, thread_name_prefix="read") as pool:
                yield from self._clips(iter(spans), pool)
        finally:
            if on_cpu:
                torch.set_num_threads(threads)

    def _clips(self, spans: Iterator[AudioSpan], pool: ThreadPoolExecutor) -> Iterator[tuple[AudioSpan, Verdict]]:
        ahead: deque[tuple[AudioSpan, Verdict | Future[_Heard | str]]] = deque()
        reading = 0
        while True:
            while reading <= 2 * self._readers and len(ahead) < _AHEAD and (span := next(spans, None)) is not None:
                if (verdict := self.known(span)) is not None:
                    ahead.append((span, verdict))
                else:
                    ahead.append((span, pool.submit(self._read, span)))
                    reading += 1
            if not ahead:
                return
            span, waiting = ahead.popleft()
            if isinstance(waiting, Future):
                reading -= 1
                waiting = self._finish(waiting.result())
            yield span, waiting

    def _finish(self, heard: _Heard | str) -> Verdict:
        if isinstance(heard, str):
            return heard
        entry = self.cache.entry(heard.part)
        if entry is None:
            assert heard.wave is not None, "what has no entry was decoded"
            codes = self.codec.encode(heard.wave)
            self.encoded += 1
            self.seconds += len(heard.wave) / SAMPLE_RATE
            entry = self.cache.add(heard.part, heard.stamp, codes, samples=len(heard.wave))
        else:
            self.cache.add_content(heard.part, heard.stamp)
        return self._judge(Clip(heard.part, entry))

    def _read(self, span: AudioSpan) -> _Heard | str:
        """In a thread: what a file holds, or why it cannot be used."""
        limits = self._limits
        try:
            with self._places.at_hand(span.path):
                before = Stamp.of(span.path)
                part = Part(self._hash(span, before), span.offset, span.duration)
                wave = None
                if self.cache.entry(part) is None:
                    wave = read_mono(
                        span.path, offset=span.offset, duration=span.duration, max_seconds=limits.max_seconds
                    )
                    if problem := self._too_short(len(wave)):
                        return problem
                    if not wave.any():
                        return "the audio is silent from start to end"
                if Stamp.of(span.path) != before:
                    return "the file changed while it was read"
                remote = self._places.is_remote(span.path)
                return _Heard(part, self._places.stamp(span.path) if remote else before, wave)
        except StepError as error:
            return error.message
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    def _hash(self, span: AudioSpan, stamp: Stamp) -> str:
        # Many parts of one long recording are read one after the other: its content is looked at once.
        with self._hashing if span.offset is not None else nullcontext():
            if (content := self._hashed.get(stamp) or self.cache.content(stamp)) is None:
                content = sha256_file(span.path)
                if span.offset is not None:
                    self._hashed[stamp] = content
            return content

    def _judge(self, clip: Clip) -> Verdict:
        if problem := self._too_short(clip.entry.samples):
            return problem
        # Resampling rounds up to a whole sample.
        if clip.entry.samples - 1 > self._limits.max_seconds * SAMPLE_RATE:
            return f"the audio lasts more than {self._limits.max_seconds:g} s"
        return clip

    def _too_short(self, samples: int) -> str | None:
        seconds = samples / SAMPLE_RATE
        if seconds >= self._limits.min_seconds:
            return None
        return f"the audio lasts {seconds:.2f} s, less than {self._limits.min_seconds:g} s"


def spans_of(sample: CloningSample) -> tuple[tuple[str, AudioSpan], ...]:
    """The audio of a sample, and what it is in the sample."""
    return ("reference", sample.reference_audio), ("target", sample.target_audio)


def usable(what: str, span: AudioSpan, verdict: Verdict, places: Places) -> Clip:
    """The clip of a sample's audio.

    Raises:
        ValueError: It has none, or lasts longer or shorter than the data says; says which, and why.
    """
    problem = None
    if isinstance(verdict, str):
        problem = verdict
    elif span.declared is not None and abs(verdict.seconds - span.declared) > _DECLARED_SLACK_SECONDS:
        problem = (
            f"the audio lasts {verdict.seconds:.2f} s and not {span.declared:g} s as the data says; "
            "a part of a file needs an offset"
        )
    if problem is not None:
        raise ValueError(f"{what} audio {places.name(span.path)}: {problem}")
    assert isinstance(verdict, Clip)
    return verdict
