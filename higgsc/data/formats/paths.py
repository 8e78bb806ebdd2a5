"""Audio files that data names: found beside the data file, and nowhere else but in the project."""

from __future__ import annotations

import os
import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def locate_audio(name: str, *, source: Path, root: Path) -> Path:
    """Turn the name of an audio file in a data file into a path.

    Relative names are relative to the data file, so the result does not depend on where one stands. Links are
    followed like files: who put a link into the data meant its target.

    Args:
        name: As it is in the data.
        source: The data file.
        root: The project root.

    Returns:
        An absolute path; whether a file is there is not looked at.

    Raises:
        ValueError: It is a URL, or leads out of both the data file's folder and the project root.
    """
    if _URL.match(name):
        raise ValueError(f"audio {name!r} is a URL; download it and name the file")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(f"audio {name!r} is no file name")
    folder = Path(os.path.abspath(source.parent))
    path = Path(os.path.normpath(folder / name))
    if not any(path.is_relative_to(home) for home in (folder, os.path.abspath(root), root.resolve())):
        raise ValueError(
            f"audio {name!r} lies outside the data file's folder and outside the project ({path}); "
            "move or link it into one of them"
        )
    return path
