"""Conversations: what people feed to chat models, with the reference's audio beside.

    {"conversations": [{"from": "human", "value": "reference text"}, {"from": "gpt", "value": "target text"}],
     "audio": "reference.wav", "target_audio": "target.wav"}
    {"instruction": "reference text", "output": "target text", "audio": "reference.wav", "target_audio": ...}

Without `target_audio`, as in all examples that go around, a row is a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats import fields
from higgsc.data.formats.protocol import Format
from higgsc.data.records import Record, Utterance

_AUDIO = ("audio", "audio_path", "reference_audio")
_TARGET = ("target_audio",)
_ANSWER = ("output", "response")
_USER, _ASSISTANT = ("human", "user"), ("gpt", "assistant")


def detect(row: Any, _path: Path) -> str | None:
    """`conversations`, or an instruction with its output, and audio."""
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("conversations"), list):
        return f"a list `conversations` of {len(row['conversations'])}"
    answer = fields.has(row, _ANSWER)
    return f"`instruction` and `{answer}`" if answer and fields.has(row, ("instruction",)) else None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a row: what the human says is the reference's text, the answer is the target's.

    Raises:
        ValueError: It is not one human and one answering turn, or the reference's audio is missing.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, not {row!r:.60}")
    system = None
    if "conversations" in row:
        system, asked, answered = _turns(row["conversations"])
    else:
        asked = fields.text(row, ("instruction",), "reference text")
        answered = fields.text(row, _ANSWER, "target text")
    reference = fields.audio(row, _AUDIO, "reference", cut=False)
    if reference is None:
        raise ValueError("no reference audio: `audio` is missing")
    return Record(
        id=fields.name_of(fields.pick(row, fields.ID)[1], "id") or default_id,
        speaker=fields.name_of(fields.pick(row, fields.SPEAKER)[1], "speaker") or "",
        system=system,
        references=(Utterance(asked, reference),),
        target=Utterance(answered, fields.audio(row, _TARGET, "target")),
        extra=fields.rest(
            row, ("conversations", "instruction", "offset", "duration"), _ANSWER, _AUDIO, _TARGET, fields.ID,
            fields.SPEAKER,
        ),
    )  # fmt: skip


def _turns(conversations: Any) -> tuple[str | None, str, str]:
    """System text, what the human says, what is answered."""
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise ValueError(f"`conversations` is a list of turns, not {conversations!r:.60}")
    turns = list(conversations)
    system = None
    if turns and turns[0].get("from") == "system":
        system = fields.text(turns.pop(0), ("value",), "system text")
    speakers = [turn.get("from") for turn in turns]
    if len(turns) != 2 or speakers[0] not in _USER or speakers[1] not in _ASSISTANT:
        raise ValueError(
            f"`conversations` is a human's and a gpt's turn, not {', '.join(map(str, speakers)) or 'none'}"
        )
    return system, fields.text(turns[0], ("value",), "reference text"), fields.text(turns[1], ("value",), "target text")


FORMAT = Format(
    name="conversations",
    summary="`conversations`, or `instruction` and `output`, with the reference's `audio`",
    detect=detect,
    record=record,
)
