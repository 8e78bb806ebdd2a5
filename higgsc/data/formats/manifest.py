"""A manifest: one recording and its transcript a row, of a single speaker.

{"audio_filepath": "a.wav", "text": "what is said", "duration": 2.1, "speaker": "noor"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats import fields
from higgsc.data.formats.protocol import Format
from higgsc.data.records import Record, Utterance

AUDIO = ("audio_filepath", "audio_url", "audio_file", "audio", "wav")
TEXT = ("text", "transcript", "transcription", "sentence", "content")
REFERENCE_AUDIO = ("context_audio_filepath",)
NEMO = ("normalized_text", "context_audio_filepath", "context_text", "taskname", "target_lang", "orig_sr", "is_phoneme")
"""Keys that NeMo's manifests have and others have not."""


def detect(row: Any, _path: Path) -> str | None:
    """A recording and its text, without the keys of NeMo and of conversations."""
    if not isinstance(row, dict) or fields.has(row, (*NEMO, "messages", "conversations", "instruction", "target")):
        return None
    audio, text = fields.has(row, AUDIO), fields.has(row, TEXT)
    return f"`{audio}` and `{text}`" if audio and text and isinstance(row[audio], str) else None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a row: a target without a reference.

    Raises:
        ValueError: Recording or text are missing or malformed.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, not {row!r:.60}")
    audio = fields.audio(row, AUDIO, "recording")
    if audio is None:
        raise ValueError("no recording: `audio_filepath` is missing")
    return Record(
        id=fields.name_of(fields.pick(row, fields.ID)[1], "id") or default_id,
        speaker=fields.name_of(fields.pick(row, fields.SPEAKER)[1], "speaker") or "",
        target=Utterance(fields.text(row, TEXT, "transcript"), audio),
        extra=fields.rest(row, AUDIO, TEXT, fields.ID, fields.SPEAKER, ("offset", "duration")),
    )


FORMAT = Format(name="manifest", summary="one recording and its transcript a row", detect=detect, record=record)
