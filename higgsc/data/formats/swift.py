"""ms-swift JSONL: `messages` of plain text in which `<audio>` stands for the next of `audios`.

    {"messages": [{"role": "user", "content": "reference text"}, {"role": "assistant", "content": "<audio>"},
                  {"role": "user", "content": "target text"}, {"role": "assistant", "content": "<audio>"}],
     "audios": ["reference.wav", "target.wav"]}

The layouts are those of ChatML (`turns`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats.chatml import conversation, messages_of
from higgsc.data.formats.protocol import Format
from higgsc.data.formats.turns import Part, Turn
from higgsc.data.records import Audio, Record

MARK = "<audio>"


def detect(row: Any, _path: Path) -> str | None:
    """Messages, and a list of audio files beside them."""
    if isinstance(row, dict) and isinstance(row.get("messages"), list) and isinstance(row.get("audios"), list):
        return f"`messages` beside a list `audios` of {len(row['audios'])}"
    return None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a sample, its marks replaced by the files they stand for.

    Raises:
        ValueError: There are more or fewer marks than files, or the turns are not those of a voice-cloning sample.
    """
    messages, names = messages_of(row), row.get("audios")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"`audios` is a list of file names, not {names!r:.60}")
    waiting = list(reversed(names))
    turns: list[Turn] = []
    marks = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"a turn is an object with a role, not {message!r:.60}")
        content = message.get("content")
        if not isinstance(content, str):
            raise ValueError(f"content is text in which {MARK} stands for audio, not {content!r:.60}")
        parts: list[Part] = []
        for number, piece in enumerate(content.split(MARK)):
            if number:
                marks += 1
                parts += [Audio(waiting.pop())] if waiting else []
            if piece.strip():
                parts.append(piece)
        turns.append((message["role"], parts))
    if marks != len(names):
        raise ValueError(f"{marks} times {MARK} in the messages, and {len(names)} files in `audios`")
    return conversation(row, default_id, turns, used=("audios",))


FORMAT = Format(
    name="ms-swift", summary="ms-swift's `messages` with <audio> marks, and `audios`", detect=detect, record=record
)
