"""Builds on disk: write what changed, remove what is no longer emitted, or only compare."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from higgsc.contract.receipts import write_atomically
from higgsc.emit.build import LOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How a folder differs from a build, as paths below the folder."""

    new: tuple[str, ...]
    changed: tuple[str, ...]
    stale: tuple[str, ...]
    """Written by an earlier build, no longer emitted."""

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.stale)

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(sorted((*self.new, *self.changed, *self.stale)))


def compare(folder: Path, files: dict[str, str]) -> Changes:
    """What writing the build would change."""
    new = tuple(path for path in files if not (folder / path).is_file())
    changed = tuple(
        path for path, text in files.items() if path not in new and (folder / path).read_bytes() != text.encode("utf-8")
    )
    stale = tuple(path for path in _earlier_outputs(folder) if path not in files and (folder / path).is_file())
    return Changes(new=new, changed=changed, stale=stale)


def write(folder: Path, files: dict[str, str]) -> Changes:
    """Write the build, each file by rename, the lock last."""
    changes = compare(folder, files)
    for path in (*changes.new, *changes.changed):
        if path != LOCK:
            _write_file(folder / path, files[path])
    for path in changes.stale:
        (folder / path).unlink()
    if LOCK in changes.all:
        _write_file(folder / LOCK, files[LOCK])
    return changes


def _write_file(path: Path, text: str) -> None:
    write_atomically(path, text)
    if path.suffix == ".sh":
        os.chmod(path, 0o755)


def _earlier_outputs(folder: Path) -> tuple[str, ...]:
    lock = folder / LOCK
    if not lock.is_file():
        return ()
    try:
        outputs = json.loads(lock.read_text("utf-8"))["outputs"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{lock} is not a lock file of higgsc ({error}); remove it and build again") from error
    return tuple(path for path in outputs if not path.startswith("/") and ".." not in Path(path).parts)
