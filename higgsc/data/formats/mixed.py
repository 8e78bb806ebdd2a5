"""Mixed content: `messages` whose user turn is reference text, reference audio and the bare target text.

    {"messages": [{"role": "user", "content": [text, audio, text]}, {"role": "assistant", "content": [audio]}]}

It differs from ChatML in the last text: there is no request around it. Without the assistant's audio it is a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats.chatml import conversation, is_mixed, messages_of
from higgsc.data.formats.protocol import Format
from higgsc.data.formats.turns import turn_of
from higgsc.data.records import Record


def detect(row: Any, _path: Path) -> str | None:
    """A user's turn of text, audio and text, the last without the words of a request."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or isinstance(row.get("audios"), list) or not is_mixed(messages):
        return None
    return "`messages` with a user turn of text, audio and a text that is no request"


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a sample; the last text of the user's turn is the target's."""
    turns = [turn_of(message) for message in messages_of(row)]
    return conversation(row, default_id, turns, plain_request=True)


FORMAT = Format(name="mixed", summary="`messages` of text, audio, bare target text", detect=detect, record=record)
