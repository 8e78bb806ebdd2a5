"""What an audio file says of itself, without decoding it: WAV and FLAC by hand, the rest through libsndfile.

libsndfile opens a decoder to read a header; for the two formats that large data sets come in, a few dozen bytes do.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import soundfile

_HEAD = 4096
_WAVE_EXTENSIBLE = 0xFFFE
_WAVE_PCM, _WAVE_FLOAT = 1, 3
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""What a program writes as size that does not know it yet, such as one that writes to a pipe."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header claims; nothing of it is believed before the file is decoded."""

    kind: str
    """`WAV`, `FLAC`, `MP3`, `OGG` and so on, by content and not by name."""
    rate: int
    """Hertz."""
    channels: int
    frames: int
    """Samples per channel."""
    held: int
    """Of those, how many the size of the file leaves room for; `frames` where that cannot be told."""

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def probe(path: Path) -> Header:
    """Read the header of a regular file.

    Raises:
        ValueError: It is empty, or no audio that can be read.
        OSError: It cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        head = os.read(handle, _HEAD)
        if not head:
            raise ValueError("the file is empty")
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            made = _wave(head, handle)
        elif head[:4] == b"fLaC":
            made = _flac(head)
        else:
            made = None
    finally:
        os.close(handle)
    return made or _other(path)


def _wave(head: bytes, handle: int) -> Header | None:
    """None where the usual reading does not do: compressed samples, a header of more than 4 KiB."""
    size = os.fstat(handle).st_size
    position, found = 12, None
    while position + 8 <= len(head):
        name, length = head[position : position + 4], int.from_bytes(head[position + 4 : position + 8], "little")
        start = position + 8
        if name == b"fmt " and length >= 16 and start + 16 <= len(head):
            code, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", head, start)
            if code == _WAVE_EXTENSIBLE and start + 26 <= len(head):
                code = int.from_bytes(head[start + 24 : start + 26], "little")
            if code not in (_WAVE_PCM, _WAVE_FLOAT) or not (channels and rate and block) or bits % 8:
                return None
            found = channels, rate, block
        elif name == b"data":
            if found is None:
                return None
            channels, rate, block = found
            held = max(size - start, 0)
            claimed = held if length in _UNKNOWN_SIZES else length
            return Header("WAV", rate, channels, claimed // block, min(claimed, held) // block)
        position = start + length + length % 2
    return None


def _flac(head: bytes) -> Header | None:
    if len(head) < 26 or head[4] & 0x7F:  # the first block is STREAMINFO
        return None
    packed = int.from_bytes(head[18:26], "big")
    rate, channels, frames = packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    return Header("FLAC", rate, channels, frames, frames) if rate and frames else None


def _other(path: Path) -> Header:
    try:
        info = soundfile.info(str(path))
    # A TypeError is how soundfile says that a file named *.raw has no header.
    except (soundfile.LibsndfileError, TypeError) as error:
        raise ValueError(f"not audio that can be read: {error}".rstrip(".")) from error
    kind = "MP3" if info.format in ("MP3", "MPEG") or "MPEG" in info.subtype else info.format
    return Header(str(kind), info.samplerate, info.channels, info.frames, info.frames)
