"""Pairs: reference and target as fields of a row.

{"reference_audio": "a.wav", "reference_text": "...", "target_audio": "b.wav", "target_text": "..."}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats import fields
from higgsc.data.formats.protocol import Format
from higgsc.data.records import Record, Utterance

_REFERENCE_AUDIO = ("reference_audio", "ref_audio", "prompt_audio", "audio_path")
_REFERENCE_TEXT = ("reference_text", "ref_text", "ref_transcript", "prompt_text")
_TARGET_AUDIO = ("target_audio", "target_audio_path")
_TARGET_TEXT = ("target_text", "text", "content")


def detect(row: Any, _path: Path) -> str | None:
    """Audio and text of a reference, both as fields."""
    if not isinstance(row, dict):
        return None
    audio, text = fields.has(row, _REFERENCE_AUDIO), fields.has(row, _REFERENCE_TEXT)
    return f"`{audio}` and `{text}`" if audio and text else None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a row; without `target_audio` it is a prompt.

    Raises:
        ValueError: A part of the reference or the target's text is missing.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, not {row!r:.60}")
    reference = fields.audio(row, _REFERENCE_AUDIO, "reference", cut=False)
    if reference is None:
        raise ValueError("no reference: `reference_audio` is missing")
    return Record(
        id=fields.name_of(fields.pick(row, fields.ID)[1], "id") or default_id,
        speaker=fields.name_of(fields.pick(row, fields.SPEAKER)[1], "speaker") or "",
        references=(Utterance(fields.text(row, _REFERENCE_TEXT, "reference text"), reference),),
        target=Utterance(
            fields.text(row, _TARGET_TEXT, "target text"), fields.audio(row, _TARGET_AUDIO, "target")
        ),
        extra=fields.rest(
            row, _REFERENCE_AUDIO, _REFERENCE_TEXT, _TARGET_AUDIO, _TARGET_TEXT, fields.ID, fields.SPEAKER,
            ("offset", "duration"),
        ),
    )  # fmt: skip


FORMAT = Format(name="paired", summary="reference and target as fields of a row", detect=detect, record=record)
