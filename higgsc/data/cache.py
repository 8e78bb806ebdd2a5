"""Codes by the audio that they were made from, so that no recording is encoded twice: not by a step that was killed
and starts again, not by the tasks that divide a step, not by the next run.

The cache is a folder of logs. Each process appends to a log of its own, so that any number of them may work at a
time, on any file system, without a lock. A log is a row of records:

| bytes | content                                                                                   |
|-------|-------------------------------------------------------------------------------------------|
| 4     | `hgc1`                                                                                    |
| 4     | length of the description, little-endian                                                  |
| 4     | frames, little-endian                                                                     |
| 32    | SHA-256 of the 12 bytes before, the description and the codes                             |
|       | the description, JSON: SHA-256 of the audio file, offset, duration, samples, the file     |
|       | the codes, `[frames, 8]` little-endian uint16; what a Whisper hears is `[frames, width]`  |

What a killed process has half written is not a record, and is passed over. A record without frames only says what a
file holds: a copy, or a file whose time has changed. Logs lie below the recipe that their codes were made by (codec,
rate, resampler, kind of device), because another recipe gives other codes.

Logs are never written again, because nothing in them dies. Codes belong to the content of audio, so they stay right
whatever becomes of the file; data that leave it out today may name it tomorrow, and other runs share the folder. What
lies there in vain is little: the part of a record that a kill cut off, the looks of files that have changed since (200
bytes each), and copies of one recording that two processes encoded in the same moment. Who needs the room deletes the
folder of a recipe that is used no more, or all of them: what is asked for is encoded again.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from higgsc.catalog.codec import CODEBOOKS
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import write_atomically

_log = logging.getLogger(__name__)

Codes = npt.NDArray[np.uint16]

_MAGIC = b"hgc1"
_HEAD = struct.Struct("<4sII")
_DIGEST = 32
_BYTES = 2
"""Of a number: a code, or a bfloat16 by its bits."""
_SYNC_SECONDS = 2.0
"""A power cut costs at most the records of so many seconds; a killed process costs none that it finished."""
_SETTLED_NS = 2_000_000_000
"""A file that changed this recently may change again without its time showing it, as in git's index."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was when its content was read: as long as it looks the same, it is not read again."""

    name: str
    """Absolute path, or URL."""
    size: int
    version: str
    """Time of the last change in nanoseconds, or what a remote store gives instead."""

    @classmethod
    def of(cls, path: Path) -> Stamp:
        status = path.stat()
        return cls(os.path.abspath(path), status.st_size, str(status.st_mtime_ns))

    @property
    def settled(self) -> bool:
        """Whether a later change is certain to show."""
        return not self.version.isdecimal() or time.time_ns() - int(self.version) > _SETTLED_NS


@dataclass(frozen=True, slots=True)
class Part:
    """What was encoded: an audio file by its content, or a part of one."""

    audio: str
    """SHA-256 of the file, in hexadecimal."""
    offset: float | None
    duration: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the codes of a part are."""

    log: int
    start: int
    """First byte of the codes in the log."""
    frames: int
    samples: int
    """Of the audio at 24 kHz."""


class CodeCache:
    """The codes of one recipe. Several threads may ask, one may add."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], *, width: int = CODEBOOKS) -> None:
        """Read what is there.

        Args:
            folder: Of all recipes; made when something is added.
            recipe: What codes depend on besides the audio.
            width: Numbers of a frame; the same for all that is made by one recipe.
        """
        self._width = width
        self._recipe = json.dumps(dict(recipe), sort_keys=True)
        self._folder = folder / sha256(self._recipe.encode()).hexdigest()[:16]
        self._logs: list[Path] = []
        self._read: set[Path] = set()
        self._entries: dict[Part, Entry] = {}
        self._contents: dict[Stamp, str] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._own: int | None = None
        self._end = 0
        self._synced = 0.0
        self.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of parts that have codes."""
        return len(self._entries)

    def refresh(self) -> None:
        """Read the logs that other processes have finished since."""
        for path in sorted(self._folder.glob("*.codes")):
            if path not in self._read:
                self._read.add(path)
                self._index(path)

    def content(self, stamp: Stamp) -> str | None:
        """SHA-256 of a file that looks as it did when it was read; None for one that has to be read."""
        return self._contents.get(stamp)

    def entry(self, part: Part) -> Entry | None:
        """Where a part's codes are, if it was encoded before."""
        return self._entries.get(part)

    def codes(self, entry: Entry) -> Codes:
        """The codes, `[frames, width]`."""
        end = entry.start + entry.frames * _BYTES * self._width
        content = self._maps.get(entry.log)
        if content is None or len(content) < end:  # this process's own log grows
            with self._logs[entry.log].open("rb") as stream:
                content = self._maps[entry.log] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(content[entry.start : end], dtype="<u2").reshape(-1, self._width).astype(np.uint16)

    def add(self, part: Part, stamp: Stamp | None, codes: Codes, *, samples: int) -> Entry:
        """Keep the codes of a part; when this returns, a killed process does not lose them.

        Args:
            part: What was encoded.
            stamp: Of its file; None for one whose looks say nothing.
            codes: `[frames, width]`.
            samples: Of the audio at 24 kHz.

        Raises:
            StepError: The disk is full, or the folder cannot be written (74).
        """
        self._append(part, stamp, codes.astype("<u2").tobytes(), len(codes), samples)
        return self._entries[part]

    def add_content(self, part: Part, stamp: Stamp | None) -> None:
        """Keep what a file holds, whose codes are there."""
        if stamp is not None and stamp.settled and stamp not in self._contents:
            self._append(part, stamp, b"", 0, 0)

    def close(self) -> None:
        """Have everything on the disk."""
        if self._own is not None:
            os.fsync(self._own)
            os.close(self._own)
            self._own = None

    def _append(self, part: Part, stamp: Stamp | None, codes: bytes, frames: int, samples: int) -> None:
        about: dict[str, Any] = {"audio": part.audio, "offset": part.offset, "duration": part.duration}
        about |= {"samples": samples} if frames else {}
        if stamp is not None and stamp.settled:
            about |= {"file": stamp.name, "size": stamp.size, "version": stamp.version}
        record = _record(json.dumps(about).encode("utf-8", "surrogatepass"), codes, frames)
        try:
            if self._own is None:
                self._own = self._start()
            _write(self._own, record)
        except OSError as error:
            raise StepError(
                f"cannot keep codes: {error.strerror}",
                code=ExitCode.IO,
                path=self._folder,
                help="make room, or name another folder in `data.prepare.cache`; what was encoded so far is kept",
            ) from error
        self._end += len(record)
        self._note(about, Entry(len(self._logs) - 1, self._end - len(codes), frames, samples))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._own)
            self._synced = time.monotonic()

    def _start(self) -> int:
        """A log of this process's own."""
        if not self._folder.is_dir():
            write_atomically(self._folder / "recipe.json", self._recipe + "\n")
        path = self._folder / f"{uuid.uuid4().hex}.codes"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._logs.append(path)
        self._read.add(path)
        self._end, self._synced = 0, time.monotonic()
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return descriptor

    def _index(self, path: Path) -> None:
        number = len(self._logs)
        self._logs.append(path)
        for about, start, frames in _records(path, self._width):
            self._note(about, Entry(number, start, frames, about.get("samples", 0)))

    def _note(self, about: Mapping[str, Any], entry: Entry) -> None:
        if entry.frames:
            # Two processes may have encoded the same at once. Either is right; the first stays.
            self._entries.setdefault(Part(about["audio"], about["offset"], about["duration"]), entry)
        if "file" in about:
            self._contents[Stamp(about["file"], about["size"], about["version"])] = about["audio"]


def _record(about: bytes, codes: bytes, frames: int) -> bytes:
    head = _HEAD.pack(_MAGIC, len(about), frames)
    return head + sha256(head + about + codes).digest() + about + codes


def _records(path: Path, width: int = CODEBOOKS) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The whole records of a log: description, first byte of the codes, frames."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if not size:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            position = 0
            while position + _HEAD.size + _DIGEST <= size:
                magic, length, frames = _HEAD.unpack_from(content, position)
                begin = position + _HEAD.size + _DIGEST
                start, end = begin + length, begin + length + frames * _BYTES * width
                if magic != _MAGIC or end > size:
                    break
                head, digest = content[position : position + _HEAD.size], content[position + _HEAD.size : begin]
                if sha256(head + content[begin:end]).digest() != digest:
                    break
                yield json.loads(content[begin:start]), start, frames
                position = end
    if position < size:
        _log.info("%s: %d bytes at the end are no whole record; what they were is encoded again", path, size - position)


def _write(descriptor: int, record: bytes) -> None:
    view = memoryview(record)
    while view:
        view = view[os.write(descriptor, view) :]
