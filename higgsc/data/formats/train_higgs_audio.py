"""train-higgs-audio: a `metadata.json` with a list `samples`, recordings and transcripts as files beside it.

    {"samples": [{"id": "s-1", "audio_file": "s-1.wav", "transcript_file": "s-1.txt", "duration": 2.1,
                  "ref_audio_file": "ref.wav", "ref_transcript": "...", "scene": "...", "speaker_id": "noor"}]}

Without a reference it is single-speaker data. Samples of several speakers have lists as references; they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from higgsc.data.formats import fields
from higgsc.data.formats.objects import Located, read_elements, read_head
from higgsc.data.formats.paths import confine, locate_audio
from higgsc.data.formats.protocol import Format
from higgsc.data.records import Record, Utterance

_SAMPLES = r'"samples"\s*:\s*\['
_LARGEST_TRANSCRIPT = 1 << 20
_AUDIO = ("audio_file",)
_TEXT = ("transcript", "text")
_REFERENCE = ("ref_audio_file",)
_REFERENCE_TEXT = ("ref_transcript", "ref_text")
_FILE = ("transcript_file",)


def claims(path: Path) -> str | None:
    """An object with a list `samples`."""
    head = read_head(path).decode("utf-8-sig", "replace").lstrip()
    return "an object with a list `samples`" if head[:1] == "{" and _before_messages(head) else None


def _before_messages(head: str) -> bool:
    """Whether the list stands in the file's own object, not inside of a sample."""
    match = re.search(_SAMPLES, head)
    return (
        match is not None
        and re.search(r'"(messages|conversations|audio_file|text)"\s*:', head[: match.start()]) is None
    )


def rows(path: Path) -> Iterator[Located]:
    """The elements of `samples`."""
    return read_elements(path, _SAMPLES, to_the_end=False)


def detect(row: Any, _path: Path) -> str | None:
    """A recording with its transcript, as the samples have them."""
    if isinstance(row, dict) and fields.has(row, _AUDIO) and fields.has(row, _FILE):
        return "`audio_file` and `transcript_file`"
    return None


def record(row: Any, default_id: str, path: Path) -> Record:
    """The record of a sample; its transcript is read from its file where it is not in the sample.

    Raises:
        ValueError: Recording or transcript are missing, or it has several references.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a sample is a JSON object, not {row!r:.60}")
    if isinstance(row.get("ref_audio_file"), list):
        raise ValueError("several speakers in one sample, which training does not take")
    audio = fields.audio(row, _AUDIO, "recording")
    if audio is None:
        raise ValueError("no recording: `audio_file` is missing")
    references: tuple[Utterance, ...] = ()
    if reference := fields.audio(row, _REFERENCE, "reference", cut=False):
        references = (Utterance(fields.text(row, _REFERENCE_TEXT, "reference text"), reference),)
    scene = row.get("scene")
    if fields.has(row, _TEXT):
        text, extra = fields.text(row, _TEXT, "transcript"), fields.rest(row, *_USED)
    else:
        text, extra = _transcript(row, path), fields.rest(row, *_USED, _FILE)
    return Record(
        id=fields.name_of(fields.pick(row, fields.ID)[1], "id") or default_id,
        speaker=fields.name_of(fields.pick(row, fields.SPEAKER)[1], "speaker") or "",
        scene=fields.text(row, ("scene",), "scene") if scene else None,
        references=references,
        target=Utterance(text, audio),
        extra=extra,
    )


_USED = (_AUDIO, _TEXT, _REFERENCE, _REFERENCE_TEXT, fields.ID, fields.SPEAKER, ("scene", "offset", "duration"))


def _transcript(row: dict[str, Any], path: Path) -> str:
    name = row.get("transcript_file")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("no transcript: `transcript` or `transcript_file` is missing")
    homes = (path.parent,)
    located = locate_audio(name, source=path, homes=homes, what="transcript")
    try:
        place = confine(located, homes)
    except ValueError as error:
        raise ValueError(f"transcript {name!r}: {error}") from error
    try:
        with place.open("rb") as stream:
            content = stream.read(_LARGEST_TRANSCRIPT + 1)
    except OSError as error:
        raise ValueError(f"transcript {name!r}: {error.strerror or error}") from error
    if len(content) > _LARGEST_TRANSCRIPT:
        raise ValueError(f"transcript {name!r} is larger than {_LARGEST_TRANSCRIPT} bytes")
    try:
        return fields.said(content.decode("utf-8-sig").strip(), "transcript")
    except UnicodeDecodeError as error:
        raise ValueError(f"transcript {name!r} is not UTF-8") from error


FORMAT = Format(
    name="train-higgs-audio",
    summary="train-higgs-audio's `metadata.json`",
    detect=detect,
    record=record,
    rows=rows,
    claims=claims,
)
