"""Builds on disk: write what changed, remove what is no longer emitted, leave alone what a person edited."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import write_atomically
from higgsc.emit.build import LOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """How a folder differs from a build, as paths below the folder."""

    new: tuple[str, ...]
    """Not there."""
    outdated: tuple[str, ...]
    """As an earlier build wrote them; the spec or the compiler says something else now."""
    edited: tuple[str, ...]
    """Neither what this build says nor what the last one wrote: somebody changed them."""
    stale: tuple[str, ...]
    """Written by an earlier build, no longer emitted."""

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(sorted((*self.new, *self.outdated, *self.edited, *self.stale)))


def compare(folder: Path, files: Mapping[str, str]) -> Changes:
    """What writing the build would change.

    Raises:
        StepError: The folder's lock cannot be read.
    """
    written = _lock_of(folder)
    new: list[str] = []
    outdated: list[str] = []
    edited: list[str] = []
    for path, text in files.items():
        place = folder / path
        if not place.is_file():
            new.append(path)
        elif (content := place.read_bytes()) != text.encode("utf-8"):
            by_us = path == LOCK or written.get(path) == sha256(content).hexdigest()
            (outdated if by_us else edited).append(path)
    stale = tuple(path for path in written if path not in files and (folder / path).is_file())
    return Changes(new=tuple(new), outdated=tuple(outdated), edited=tuple(edited), stale=stale)


def write(folder: Path, files: Mapping[str, str], *, force: bool = False, below: Collection[str] = ()) -> Changes:
    """Write the build, each file by rename, the lock last.

    Args:
        folder: Of the build.
        files: Text by path below the folder.
        force: Whether to overwrite what was edited by hand.
        below: Folders in it that are builds of their own: the points of a sweep.

    Raises:
        StepError: The folder holds something else (2), or another spec's build (1, but for `force`), or files were
            edited by hand (1, but for `force`); nothing is written then. The message shows what would be lost.
    """
    if not folder.exists():
        return _write_new(folder, files)
    _refuse_what_is_not_ours(folder, {*(path.split("/")[0] for path in files), *below}, files[LOCK], force=force)
    changes = compare(folder, files)
    if changes.edited and not force:
        raise StepError(
            f"edited by hand since the last build: {', '.join(changes.edited)}\n{_lost(folder, files, changes.edited)}",
            code=ExitCode.DIAGNOSTICS,
            path=folder,
            help="put the change into the spec, or build with --force to lose it",
        )
    for path in (*changes.new, *changes.outdated, *changes.edited):
        if path != LOCK:
            _write_file(folder / path, files[path])
    for path in changes.stale:
        (folder / path).unlink()
    if LOCK in changes.all:
        _write_file(folder / LOCK, files[LOCK])
    return changes


def remove(folder: Path) -> None:
    """Delete a build, as long as it is nothing but that.

    Raises:
        StepError: Files in it were edited or added by hand (1); nothing is deleted then.
    """
    written = _lock_of(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != LOCK and written.get(name) != sha256(path.read_bytes()).hexdigest():
            raise StepError(
                f"this build is no longer part of the spec, but {name} was edited by hand",
                code=ExitCode.DIAGNOSTICS,
                path=folder,
                help="move what you need elsewhere, and remove the folder",
            )
    shutil.rmtree(folder)


def _refuse_what_is_not_ours(folder: Path, ours: Collection[str], text: str, *, force: bool) -> None:
    """A build goes into an empty folder, or into one of an earlier build of the same spec."""
    if not folder.is_dir():
        raise StepError("is no folder", code=ExitCode.USAGE, path=folder)
    lock = folder / LOCK
    if not lock.is_file():
        strange = next((path for path in sorted(folder.iterdir()) if path.name not in ours), None)
        if strange is not None:
            raise StepError(
                f"holds {strange.name} and no {LOCK}, so it is not the folder of a build",
                code=ExitCode.USAGE,
                path=folder,
                help="name an empty folder, or one that is not there yet",
            )
        return
    other, spec = _read_lock(lock).get("spec"), json.loads(text)["spec"]
    if other != spec and not force:
        raise StepError(
            f"was built from {other}, not from {spec}",
            code=ExitCode.DIAGNOSTICS,
            path=folder,
            help="give one of the two specs another `name`, or build with --force to replace that build",
        )


def _write_new(folder: Path, files: Mapping[str, str]) -> Changes:
    """Write a build where there was none: beside its place, then one rename (a sweep has thousands of files)."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    try:
        for parent in {(draft / path).parent for path in files}:
            parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with (draft / path).open("w", encoding="utf-8", newline="") as stream:
                stream.write(text)
            if path.endswith(".sh"):
                os.chmod(draft / path, 0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Changes(new=tuple(files), outdated=(), edited=(), stale=())


def _write_file(path: Path, text: str) -> None:
    write_atomically(path, text, durable=False)  # a build can be made again at any time
    if path.suffix == ".sh":
        os.chmod(path, 0o755)


def _lost(folder: Path, files: Mapping[str, str], paths: tuple[str, ...]) -> str:
    """The hand-made changes as unified diffs."""
    diffs = []
    for path in paths:
        edited = (folder / path).read_text("utf-8", errors="replace")
        lines = difflib.unified_diff(
            files[path].splitlines(), edited.splitlines(), f"{path} (built)", f"{path} (edited)", n=1, lineterm=""
        )
        diffs += [f"    {line}" for line in lines]
    return "\n".join(diffs)


def _lock_of(folder: Path) -> dict[str, str]:
    """sha256 of every file that the last build wrote here, by path."""
    lock = folder / LOCK
    if not lock.is_file():
        return {}
    outputs = _read_lock(lock)["outputs"]
    return {str(path): str(digest) for path, digest in outputs.items() if ".." not in Path(path).parts}


def _read_lock(lock: Path) -> dict[str, Any]:
    try:
        content = json.loads(lock.read_text("utf-8"))
        if not isinstance(content["outputs"], dict):
            raise TypeError("outputs")
    except (ValueError, KeyError, TypeError) as error:
        raise StepError(f"not a lock file of higgsc ({error})", path=lock, help="remove it and build again") from error
    return dict(content)
