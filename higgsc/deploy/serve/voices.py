"""Registered voices: recordings in a folder, each with its text beside it, encoded when the server starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.generate import Speaker
from higgsc.deploy.voice import Voice

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_TEXT_BYTES = 20_000


def load_voices(folder: Path, speaker: Speaker) -> Mapping[str, Voice]:
    """Voices by name: `huda.wav` with `huda.txt` beside it is the voice `huda`.

    Raises:
        StepError: The folder is missing (66) or holds no voice; a recording has no text, a name that clients cannot
            use or that is there twice, or is none that a voice can be taken from (65). It names the file.
    """
    if not folder.is_dir():
        raise StepError("there is no such folder of voices", code=ExitCode.MISSING_INPUT, path=folder)
    voices: dict[str, Voice] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        if not NAME.fullmatch(path.stem):
            raise StepError("the name of a voice has letters, digits, `.`, `_` and `-` only", path=path)
        if path.stem in voices:
            raise StepError(f"there are two recordings of the voice `{path.stem}`", path=path)
        text = _text_beside(path)
        try:
            voices[path.stem] = speaker.voice(path, text)
        except StepError as error:
            if error.path is None:  # what is wrong is the text
                error.path = path.with_suffix(".txt")
            raise
    if not voices:
        raise StepError(
            "there is no voice in the folder",
            path=folder,
            help="put recordings there, such as huda.wav, each with what it says beside it: huda.txt",
        )
    return voices


def _text_beside(recording: Path) -> str:
    path = recording.with_suffix(".txt")
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise StepError("this is no text of a short recording", path=path)
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise StepError(
            f"cannot read what the recording says: {error.strerror}",
            path=path,
            help=f"write what is said in {recording.name} to {path.name}",
        ) from error
    except UnicodeDecodeError as error:
        raise StepError("the text is not UTF-8", path=path) from error
