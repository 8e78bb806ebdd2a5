"""Audio files to clips of the store, each read and encoded once however many samples use it."""

from __future__ import annotations

import os
from pathlib import Path

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.jobs import DataLimits
from higgsc.contract.outcome import StepError
from higgsc.data.audio import Wave, read_mono
from higgsc.data.codec import Codec
from higgsc.data.records import AudioSpan, CloningSample
from higgsc.data.store import StoreWriter

_DECLARED_SLACK_SECONDS = 0.5
"""How far a file's length may be from what the data says it is."""


class ClipEncoder:
    """Reads, checks and encodes the audio of samples into a store."""

    def __init__(self, codec: Codec, writer: StoreWriter, *, limits: DataLimits, root: Path) -> None:
        self._codec, self._writer, self._limits, self._root = codec, writer, limits, root
        self._numbers: dict[AudioSpan, int] = {}
        self._seconds: dict[AudioSpan, float] = {}
        self._problems: dict[AudioSpan, str] = {}

    def add(self, sample: CloningSample) -> tuple[int, int]:
        """Put a sample's reference and target into the store, unless they are there.

        Returns:
            The numbers of the two clips in the store.

        Raises:
            ValueError: One of the two cannot be used; says which, and why. Nothing is added then.
        """
        waves: dict[AudioSpan, Wave] = {}
        for what, span in (("reference", sample.reference_audio), ("target", sample.target_audio)):
            try:
                if span not in self._numbers:
                    waves[span] = self._read(span)
                self._check_declared(span)
            except ValueError as error:
                raise ValueError(f"{what} audio {os.path.relpath(span.path, self._root)}: {error}") from error
        for span, wave in waves.items():
            self._numbers[span] = self._writer.add_clip(self._codec.encode(wave))
        return self._numbers[sample.reference_audio], self._numbers[sample.target_audio]

    def _read(self, span: AudioSpan) -> Wave:
        if span in self._problems:
            raise ValueError(self._problems[span])
        limits = self._limits
        try:
            wave = read_mono(span.path, offset=span.offset, duration=span.duration, max_seconds=limits.max_seconds)
            self._seconds[span] = len(wave) / SAMPLE_RATE
            if self._seconds[span] < limits.min_seconds:
                raise StepError(f"the audio lasts {self._seconds[span]:.2f} s, less than {limits.min_seconds:g} s")
            if not wave.any():
                raise StepError("the audio is silent from start to end")
        except StepError as error:
            self._problems[span] = error.message
            raise ValueError(error.message) from error
        return wave

    def _check_declared(self, span: AudioSpan) -> None:
        seconds = self._seconds[span]
        if span.declared is not None and abs(seconds - span.declared) > _DECLARED_SLACK_SECONDS:
            raise ValueError(
                f"the audio lasts {seconds:.2f} s and not {span.declared:g} s as the data says; "
                "a part of a file needs an offset"
            )
