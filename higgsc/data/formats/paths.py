"""Files that data names: found beside the data file, in the project or in folders its user named, and nowhere else."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def homes_of(source: Path, root: Path, roots: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """The folders inside which a data file's audio may lie: its own, the project, and those that the user named."""
    return (Path(os.path.abspath(source.parent)), Path(os.path.abspath(root)), *roots)


def locate_audio(name: str, *, source: Path, homes: tuple[Path, ...], what: str = "audio") -> Path:
    """Turn the name of an audio file in a data file into a path.

    Relative names are relative to the data file, so the result does not depend on where one stands.

    Args:
        name: As it is in the data.
        source: The data file.
        homes: Absolute folders inside which the file may lie; see `homes_of`.
        what: What to call the file in errors.

    Returns:
        An absolute path; whether a file is there is not looked at. `confine` does, before it is opened.

    Raises:
        ValueError: It is a URL, no file name, or leads out of all homes.
    """
    if _URL.match(name):
        raise ValueError(f"{what} {name!r} is a URL; download it and name the file")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"{what} {name!r} is no file name")
    path = Path(os.path.normpath(os.path.join(os.path.abspath(source.parent), name)))
    if not any(path.is_relative_to(home) for home in (*homes, *(home.resolve() for home in homes))):
        raise ValueError(
            f"{what} {name!r} lies outside the data file's folder and outside the project ({path}); "
            "move it into one of them, or allow its folder in `data.roots`"
        )
    return path


def confine(path: Path, homes: tuple[Path, ...]) -> Path:
    """The file that a path leads to, if it is one and lies where it may.

    Raises:
        ValueError: Nothing is there; it is a folder, a pipe or a device; or a link on the way leads out of all homes.
    """
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        what = "the link leads nowhere" if path.is_symlink() else "the file does not exist"
        raise ValueError(what) from None
    except (OSError, RuntimeError) as error:  # a circle of links, or no right to look
        raise ValueError(f"cannot be looked at: {getattr(error, 'strerror', None) or error}") from error
    if not any(real.is_relative_to(home.resolve()) for home in homes):
        raise ValueError(f"a link leads out of the data's folders, to {real}; allow its folder in `data.roots`")
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"
        raise ValueError(f"is a {kind}, not a file")
    return real
