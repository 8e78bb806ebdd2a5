"""ChatML: voice-cloning conversations as a list of `messages`; see `turns` for their layouts.

A turn's content is a string, a part, or a list of both; a part is `{"type": "text", "text": ...}` or
`{"type": "audio", "audio_url": ..., "offset": ..., "duration": ...}`. The system turn may be left out; a scene is a
turn of its own after it, or stands between scene marks in its text. Beside `messages`, a sample may have an id
(`id` or `misc.sample_id`) and a `speaker`; `start_index` is not needed, as only the target is learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from higgsc.data.formats.chatml_fast import fast
from higgsc.data.formats.fields import name_of, rest
from higgsc.data.formats.protocol import Format
from higgsc.data.formats.turns import REQUEST, Turn, dialogue, split_system, turn_of
from higgsc.data.records import Record

_USED = (("messages", "id", "speaker", "start_index", "origin"),)


def detect(row: Any, _path: Path) -> str | None:
    """Messages with a role each, and no list of audio files beside them."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or isinstance(row.get("audios"), list) or is_mixed(messages):
        return None
    roles = [str(message.get("role")) for message in messages[:6] if isinstance(message, dict)]
    return f"a list `messages` with the roles {', '.join(roles)}" if roles else "a list `messages`"


def is_mixed(messages: list[Any]) -> bool:
    """Whether a user's turn ends in a bare target text: text, audio, text without the words of the request."""
    for message in messages:
        if not isinstance(message, dict):
            return False
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        if message.get("role") == "user":
            kinds = [part.get("type") if isinstance(part, dict) else "text" for part in parts]
            if kinds != ["text", "audio", "text"]:
                return False
            last = parts[-1].get("text") if isinstance(parts[-1], dict) else parts[-1]
            if not isinstance(last, str) or REQUEST in last:
                return False
        elif message.get("role") == "assistant" and any(
            isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text") for part in parts
        ):
            return False  # with a transcript the request does not matter
    return any(isinstance(message, dict) and message.get("role") == "user" for message in messages)


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a sample.

    Raises:
        ValueError: Its turns are not those of a voice-cloning sample, or a part is malformed.
    """
    return conversation(row, default_id, [turn_of(message) for message in messages_of(row)])


def messages_of(row: Any) -> list[Any]:
    """The messages of a row that has some."""
    if not isinstance(row, dict):
        raise ValueError(f"a sample is a JSON object, not {row!r:.60}")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages` is a list of turns, not {messages!r:.60}")
    return messages


def conversation(
    row: dict[str, Any], default_id: str, turns: list[Turn], *, plain_request: bool = False, used: tuple[str, ...] = ()
) -> Record:
    """The record of a row whose turns are read; `used` are fields that are not to be kept as extra."""
    misc, origin = row.get("misc"), row.get("origin")
    name = name_of(row.get("id"), "id") or name_of(misc.get("sample_id") if isinstance(misc, dict) else None, "id")
    system, scene, following = split_system(turns)
    references, target, request = dialogue(following, plain_request=plain_request)
    extra = rest(row, *_USED, used)
    if request is not None:
        extra = {"request": request} | (extra or {})
    return Record(
        id=name or default_id,
        speaker=name_of(row.get("speaker"), "speaker") or "",
        system=system,
        scene=scene,
        references=references,
        target=target,
        extra=extra,
        origin=origin if isinstance(origin, str) else None,
    )


FORMAT = Format(
    name="chatml",
    summary="conversations as `messages`, of three or five turns",
    detect=detect,
    record=record,
    fast=fast,
)
