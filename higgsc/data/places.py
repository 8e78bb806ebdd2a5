"""Where a job's files are: on this machine, or somewhere else and then in a mirror here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgsc.contract.jobs import JobBase, SpeechJob, StepContext
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import publish_folder
from higgsc.data.cache import Stamp
from higgsc.data.formats.paths import confine, homes_of
from higgsc.data.formats.reading import FORMATS, detect
from higgsc.data.lock import exclusive
from higgsc.data.remote import Mirror, file_system, is_url, place_in, read_remote
from higgsc.data.store import STORE_FILE, files_of

_MIRROR = "remote"
"""Folder below the run's."""


class Places:
    """The files that a job names, as paths on this machine."""

    def __init__(self, job: SpeechJob, context: StepContext) -> None:
        self.root = context.root
        self._mirror_folder = context.path(job.run) / _MIRROR
        named = (*(source.path.rpartition("/")[0] for source in job.sources), *job.roots)
        self._mirror = Mirror(self._mirror_folder, tuple(name for name in named if is_url(name)))
        self._roots = tuple(self.path(name) for name in job.roots)

    def path(self, name: str) -> Path:
        """A path or URL of the job file as a path on this machine."""
        return place_in(self._mirror_folder, name) if is_url(name) else self.root / name

    def name(self, path: Path) -> str:
        """What to call a file: its URL, or its path from the project root."""
        return self._mirror.url(path) or os.path.relpath(path, self.root)

    def is_remote(self, path: Path) -> bool:
        return self._mirror.url(path) is not None

    def homes(self, source: Path) -> tuple[Path, ...]:
        """The folders inside which the audio of a data file may lie; for a remote one, this machine is none of them."""
        if self.is_remote(source):
            return (source.parent, *(root for root in self._roots if self.is_remote(root)))
        return homes_of(source, self.root, tuple(root for root in self._roots if not self.is_remote(root)))

    def data_file(self, name: str, form: str) -> Path:
        """A data file, fetched anew if it is remote.

        Raises:
            StepError: There is none (66).
        """
        path = self.path(name)
        if self.is_remote(path):
            try:
                self._mirror.fetch(path)
            except FileNotFoundError:
                raise StepError(f"there is no data file {name}", code=ExitCode.MISSING_INPUT) from None
            if (FORMATS[form] if form != "auto" else detect(path)[0]).name == "train-higgs-audio":
                self._mirror.fetch_folder(path.parent, ".txt")  # its transcripts may be files of their own
        elif not path.is_file():
            raise StepError("the data file does not exist", code=ExitCode.MISSING_INPUT, path=path)
        return path

    def check(self, path: Path, homes: tuple[Path, ...]) -> None:
        """Look whether an audio file is there to be read.

        Raises:
            ValueError: It is missing, no regular file, or a link leads out of `homes`.
        """
        if not self.is_remote(path):
            confine(path, homes)
        elif self._mirror.info(path) is None:
            raise ValueError("the file does not exist")

    def stamp(self, path: Path) -> Stamp | None:
        """How an audio file looks without being read; None where that says nothing of its content."""
        url = self._mirror.url(path)
        if url is None:
            return Stamp.of(path)
        info, version = self._mirror.info(path) or {}, self._mirror.version(path)
        return None if version is None else Stamp(url, int(info.get("size") or 0), version)

    @contextmanager
    def at_hand(self, path: Path) -> Iterator[None]:
        """Have an audio file on this machine while the block works.

        Raises:
            StepError: It cannot be fetched.
        """
        if not self.is_remote(path):
            yield
            return
        try:
            with self._mirror.borrowed(path):
                yield
        except FileNotFoundError:
            raise StepError("the audio file does not exist", code=ExitCode.MISSING_INPUT, path=path) from None


def store_path(name: str, job: JobBase, context: StepContext) -> Path:
    """A job's store as a folder on this machine, where it is written; a remote one is not looked for."""
    return place_in(context.path(job.run) / _MIRROR, name) if is_url(name) else context.path(name)


def fetch_store(name: str, job: JobBase, context: StepContext) -> Path:
    """A job's store as a folder on this machine; a remote one is fetched unless it is here.

    Raises:
        StepError: A remote one is not there (66), or cannot be read (74).
    """
    path = store_path(name, job, context)
    if not is_url(name):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path, wait=True):  # the other processes of this machine wait for the first
        description = read_remote(f"{name}/{STORE_FILE}")
        if description is None:
            raise StepError(f"there is no store at {name}", code=ExitCode.MISSING_INPUT, help="run the prepare step")
        here = path / STORE_FILE
        if not here.is_file() or here.read_bytes() != description:
            fs, remote = file_system(name)
            with publish_folder(path, marker=STORE_FILE) as folder:
                for file in _files(description, name):
                    fs.get_file(f"{remote}/{file}", str(folder / file))
                (folder / STORE_FILE).write_bytes(description)
    return path


def _files(description: bytes, name: str) -> tuple[str, ...]:
    try:
        return files_of(json.loads(description))
    except (ValueError, KeyError, TypeError) as error:
        raise StepError(
            f"{name}/{STORE_FILE} is not the record of a store: {error!r}", help="run the prepare step again"
        ) from error
