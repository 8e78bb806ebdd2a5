"""Files that are somewhere else: `s3://`, `gs://`, `hf://` and whatever else fsspec knows, read and written through a
mirror on this machine.

A remote file has a place in the mirror, `<mirror>/<protocol>/<rest of the URL>`, and goes by that path everywhere:
what a data file names is located and confined there as if it were local. Only folders that the job names are looked
into, and a file comes here when it is read.
"""

from __future__ import annotations

import os
import posixpath
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from higgsc.catalog.remote import PROTOCOLS
from higgsc.contract.outcome import ExitCode, StepError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.DOTALL)
_KEPT = 64
"""Files that are kept after they were read: data may name many parts of one recording."""
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "sha256", "LastModified", "last_modified", "mtime", "created")
"""What file systems call that which changes with the content."""


def is_url(name: str) -> bool:
    """Whether a job names something that is not on this machine."""
    return _URL.match(name) is not None


def place_in(mirror: Path, url: str) -> Path:
    """The path of a remote file in the mirror."""
    match = _URL.match(url)
    assert match is not None, "the caller has looked"
    rest = posixpath.normpath("/" + match[2]).lstrip("/")
    return mirror / match[1] / rest


def file_system(url: str) -> tuple[Any, str]:
    """The file system that a URL is on, and the URL as it has it.

    Raises:
        StepError: Its package is not installed, or the protocol is unknown (66).
    """
    protocol = url.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = PROTOCOLS.get(protocol)
        known = f"pip install {package}" if package else f"known are {', '.join(PROTOCOLS)}"
        what = f"{protocol}:// needs a package that is not installed" if package else f"unknown protocol {protocol}://"
        raise StepError(f"cannot reach {url}: {what}", code=ExitCode.MISSING_INPUT, help=known) from error
    return fs, path


class Mirror:
    """The folders of other machines that a job may read, and what of them is here."""

    def __init__(self, folder: Path, urls: tuple[str, ...]) -> None:
        """Nothing is fetched yet.

        Args:
            folder: Of the mirror on this machine.
            urls: Folders that may be looked into.
        """
        self._folder = folder
        self.homes = {place_in(folder, url): url.rstrip("/") for url in urls}
        """The folders in the mirror, and their URLs."""
        self._listings: dict[Path, dict[str, dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._users: OrderedDict[Path, int] = OrderedDict()

    def url(self, path: Path) -> str | None:
        """Where a file of the mirror comes from; None for a path that is none of its."""
        for home, url in self.homes.items():
            if path == home:
                return url
            if path.is_relative_to(home):
                return f"{url}/{path.relative_to(home).as_posix()}"
        return None

    def info(self, path: Path) -> dict[str, Any] | None:
        """What the remote folder's listing says of a file; None if it has no such file."""
        with self._lock:
            listing = self._listings.get(path.parent)
            if listing is None:
                listing = self._listings[path.parent] = self._list(path.parent)
        found = listing.get(path.name)
        return found if found is not None and found.get("type") == "file" else None

    def version(self, path: Path) -> str | None:
        """Something that changes with a file's content; None where the file system says nothing of the kind."""
        info = self.info(path) or {}
        return next((f"{name} {info[name]}" for name in _VERSIONS if info.get(name)), None)

    def fetch(self, path: Path) -> None:
        """Bring a file here, whole or not at all.

        Raises:
            FileNotFoundError: There is none.
            StepError: It cannot be read (74).
        """
        url = self.url(path)
        assert url is not None, "the caller has asked for the URL"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        with _reported(url):
            fs, name = file_system(url)
            try:
                fs.get_file(name, str(temporary))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def fetch_folder(self, folder: Path, suffix: str) -> None:
        """Bring those files of a folder and of the folders below it here whose names end with `suffix`."""
        url = self.url(folder)
        assert url is not None, "the caller has asked for the URL"
        with _reported(url):
            fs, name = file_system(url)
            names = [found for found in fs.find(name) if found.endswith(suffix)]
        for found in names:
            self.fetch(folder / posixpath.relpath(found, name))

    @contextmanager
    def borrowed(self, path: Path) -> Iterator[None]:
        """Have a file here while the block works. The last few that were used stay.

        Raises:
            FileNotFoundError: There is none.
            StepError: It cannot be read (74).
        """
        with self._lock:
            self._users[path] = self._users.get(path, 0) + 1
            self._users.move_to_end(path)
        try:
            if not path.exists():
                self.fetch(path)
            yield
        finally:
            with self._lock:
                self._users[path] -= 1
                idle = [other for other, users in self._users.items() if users == 0]
                for other in idle[: max(0, len(self._users) - _KEPT)]:
                    del self._users[other]
                    other.unlink(missing_ok=True)

    def _list(self, folder: Path) -> dict[str, dict[str, Any]]:
        url = self.url(folder)
        if url is None:
            return {}
        with _reported(url), suppress(FileNotFoundError, NotADirectoryError):
            fs, name = file_system(url)
            return {posixpath.basename(entry["name"].rstrip("/")): entry for entry in fs.ls(name, detail=True)}
        return {}


def read_remote(url: str) -> bytes | None:
    """A small remote file; None if there is none.

    Raises:
        StepError: It cannot be read (74).
    """
    with _reported(url), suppress(FileNotFoundError):
        fs, name = file_system(url)
        content: bytes = fs.cat_file(name)
        return content
    return None


def upload(folder: Path, url: str, *, last: str) -> None:
    """Copy the files of a folder to a remote one, in which `last` stands for the whole.

    It is taken away first and comes last, so that a reader never finds it beside files of another time.

    Raises:
        StepError: It cannot be written (74).
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != last)
    with _reported(url):
        fs, name = file_system(url)
        fs.makedirs(name, exist_ok=True)
        if fs.exists(f"{name}/{last}"):
            fs.rm_file(f"{name}/{last}")
        for file in (*names, last):
            fs.put_file(str(folder / file), f"{name}/{file}")


@contextmanager
def _reported(url: str) -> Iterator[None]:
    """What goes wrong on the way, as an error that says where."""
    try:
        yield
    except (StepError, FileNotFoundError, NotADirectoryError):
        raise
    # Each file system has errors of its own (botocore, aiohttp, requests, gcsfs), with no class in common.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StepError(
            f"cannot reach {url}: {reason}", code=ExitCode.IO, help="look at the credentials and the network"
        ) from error
