"""NeMo's manifest for speech synthesis: a manifest with normalised text and, possibly, a context as reference.

    {"audio_filepath": "a.wav", "text": "12", "normalized_text": "twelve", "duration": 2.1, "speaker": 3,
     "context_audio_filepath": "b.wav", "context_text": "...", "context_audio_duration": 3.0}

`normalized_text` is what was spoken, so it wins over `text`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats import fields
from higgsc.data.formats.manifest import NEMO
from higgsc.data.formats.protocol import Format
from higgsc.data.records import Audio, Record, Utterance

_AUDIO = ("audio_filepath",)
_CONTEXT = ("context_audio_filepath", "context_text", "context_audio_duration")


def detect(row: Any, _path: Path) -> str | None:
    """A recording with one of the keys that are NeMo's own."""
    own = fields.has(row, NEMO) if isinstance(row, dict) and fields.has(row, _AUDIO) else None
    return f"`audio_filepath` and `{own}`" if own else None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a row; its context, if it has both audio and text, is the reference.

    Raises:
        ValueError: Recording, text, or half of the context is missing.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, not {row!r:.60}")
    audio = fields.audio(row, _AUDIO, "recording")
    if audio is None:
        raise ValueError("no recording: `audio_filepath` is missing")
    spoken = ("normalized_text",) if fields.has(row, ("normalized_text",)) else ("text",)
    references: tuple[Utterance, ...] = ()
    if fields.has(row, _CONTEXT[:1]) and not fields.has(row, _CONTEXT[1:2]):
        raise ValueError("a reference without its text: `context_audio_filepath` needs `context_text`")
    if context := fields.audio(row, _CONTEXT[:1], "reference", cut=False):
        length = fields.seconds({"duration": row.get("context_audio_duration")}, "duration")
        references = (
            Utterance(fields.text(row, ("context_text",), "reference text"), Audio(context.path, None, length)),
        )
    return Record(
        id=fields.name_of(fields.pick(row, fields.ID)[1], "id") or default_id,
        speaker=fields.name_of(fields.pick(row, fields.SPEAKER)[1], "speaker") or "",
        references=references,
        target=Utterance(fields.text(row, spoken, "transcript"), audio),
        extra=fields.rest(row, _AUDIO, _CONTEXT, spoken, fields.ID, fields.SPEAKER, ("offset", "duration")),
    )


FORMAT = Format(name="nemo", summary="NeMo's manifest for speech synthesis", detect=detect, record=record)
