"""Lines of log files, now or as they are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_QUESTIONS = 3.0
"""How often the scheduler is asked whether the job is over; the files are looked at more often."""


def tail(files: Callable[[], list[Path]]) -> Iterator[str]:
    """All lines that the files hold."""
    for path in files():
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                yield line.rstrip("\n")


def follow(files: Callable[[], list[Path]], live: Callable[[], bool]) -> Iterator[str]:
    """The lines that the files hold, and those that are added, until the job is over and everything is read.

    Args:
        files: Lists the files; they need not be there at first, and more may come.
        live: Whether anything may still be written.
    """
    read: dict[Path, int] = {}
    over, asked = False, 0.0
    while True:
        news = False
        for path in files():
            start = read.get(path, 0)
            with path.open("rb") as stream:
                stream.seek(start)
                added = stream.read()
            # A line that is not finished stays for the next look, unless there will be none.
            whole = added if over else added[: added.rfind(b"\n") + 1]
            read[path] = start + len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                news = True
                yield line
        if over:
            return
        if not news and time.monotonic() - asked >= SECONDS_BETWEEN_QUESTIONS:
            over, asked = not live(), time.monotonic()
            continue
        time.sleep(SECONDS_BETWEEN_LOOKS)
