"""ChatML: voice-cloning conversations as a list of `messages`, in one of two layouts.

Three turns, the reference in the user's:

    system · user [reference text, reference audio, "Please generate speech for given text in reference
    audio's voice: ..."] · assistant [target text, target audio]

Five turns, the layout that the model was trained on:

    system · user: reference text · assistant: reference audio · user: target text · assistant: target audio

A turn's content is a string, a part, or a list of both; a part is `{"type": "text", "text": ...}` or
`{"type": "audio", "audio_url": ..., "offset": ..., "duration": ...}`. The system turn may be left out; a
scene is a turn of its own after it, or stands between scene marks in its text. Beside `messages`, a sample may
have an id (`id` or `misc.sample_id`) and a `speaker`; `start_index` is not needed, as only the target is
learned.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from higgsc.catalog.codec import SCENE_END, SCENE_START
from higgsc.data.formats.objects import read_objects
from higgsc.data.formats.paths import locate_audio
from higgsc.data.layout import DEFAULT_SYSTEM
from higgsc.data.records import AudioSpan, CloningSample, Rejected

REQUEST = "Please generate speech for given text in reference audio's voice:"
"""What precedes the target text in a user's request."""

_SCENE = re.compile(rf"\s*{re.escape(SCENE_START)}(.*?){re.escape(SCENE_END)}\s*", re.DOTALL)

Part = str | AudioSpan
"""A piece of a turn: text, or audio."""


def read(path: Path, *, root: Path) -> Iterator[CloningSample | Rejected]:
    """Read a ChatML file: a JSON array of samples, or one sample a line.

    Args:
        path: The data file. Audio is relative to it.
        root: The project root, inside which audio may lie.

    Yields:
        Every sample in the file's order, usable or rejected.

    Raises:
        StepError: The file is missing (66), or is neither JSON nor JSONL (65).
    """
    # Ids that the data does not give come from where the sample stands.
    stem = os.path.relpath(path.with_suffix(""), root).replace(os.sep, ".").lstrip(".")
    for number, element in enumerate(read_objects(path)):
        sample_id = f"{stem}-{number:06d}"
        try:
            if element.problem is not None:
                raise ValueError(element.problem)
            if not isinstance(element.value, dict):
                raise ValueError(f"a sample is a JSON object, not {element.value!r:.60}")
            sample_id = _id(element.value) or sample_id
            yield _sample(element.value, sample_id=sample_id, source=path, line=element.line, root=root)
        except ValueError as error:
            yield Rejected(id=sample_id, source=path, line=element.line, reason=str(error))


def _sample(value: dict[str, Any], *, sample_id: str, source: Path, line: int, root: Path) -> CloningSample:
    turns = [_turn(message, source=source, root=root) for message in _messages(value)]
    system, scene = DEFAULT_SYSTEM, None
    if turns and turns[0][0] == "system":
        system = _only_text(turns.pop(0)[1], "system turn")
        if marked := _SCENE.search(system):
            scene = marked.group(1).strip() or None
            system = _SCENE.sub("\n\n", system, count=1).strip() or DEFAULT_SYSTEM
    if turns and turns[0][0] == "scene":
        scene = _only_text(turns.pop(0)[1], "scene")
    roles = [role for role, _ in turns]
    parts = [content for _, content in turns]
    if roles == ["user", "assistant"]:
        reference_text, reference_audio, request = _user_turn(parts[0])
        said, target_audio = _spoken(parts[1])
    elif roles == ["user", "assistant", "user", "assistant"]:
        reference_text = _only_text(parts[0], "first user turn")
        _, reference_audio = _spoken(parts[1], "the first assistant turn holds no reference audio")
        text = _only_text(parts[2], "second user turn")
        request = text if REQUEST in text else f"{REQUEST}{text}"
        said, target_audio = _spoken(parts[3])
    elif roles == ["user", "assistant", "user"] or roles == ["user"]:
        raise ValueError(_NO_TARGET)
    else:
        raise ValueError(
            f"unknown order of turns: {', '.join(roles) or 'none'}; voice cloning is user, assistant or "
            "user, assistant, user, assistant after the system turn"
        )
    return CloningSample(
        id=sample_id,
        speaker=_name(value.get("speaker"), "speaker") or "",
        system=system,
        scene=scene,
        reference_text=reference_text,
        reference_audio=reference_audio,
        target_text=_target_text(said, request),
        target_audio=target_audio,
        source=source,
        line=line,
    )


_NO_TARGET = "no target audio: this is a prompt to generate from, not a sample to learn from"


def _id(value: dict[str, Any]) -> str | None:
    misc = value.get("misc")
    return _name(value.get("id", misc.get("sample_id") if isinstance(misc, dict) else None), "id")


def _name(value: Any, what: str) -> str | None:
    if value is None:
        return None
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # Names go to logs and reports, a line each. Half a surrogate pair is not printable either.
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"the {what} is one line of text or a number, not {value!r:.60}")
    return name


def _messages(value: dict[str, Any]) -> list[Any]:
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages` is a list of turns, not {messages!r:.60}")
    return messages


def _turn(message: Any, *, source: Path, root: Path) -> tuple[str, list[Part]]:
    """Role and parts of a turn; empty text is left out, adjacent text stays apart."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"a turn is an object with a role, not {message!r:.60}")
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    made = [_part(part, source=source, root=root) for part in parts]
    return message["role"], [part for part in made if not isinstance(part, str) or part.strip()]


def _part(part: Any, *, source: Path, root: Path) -> Part:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"a text part has a string `text`, not {part.get('text')!r:.60}")
        return str(part["text"])
    if kind == "audio":
        name = part.get("audio_url")
        if not isinstance(name, str) or not name.strip():
            embedded = " (audio embedded as `raw_audio` is not read; write it to a file)"
            raise ValueError(
                f"an audio part names a file in `audio_url`, not {name!r:.60}"
                + (embedded if part.get("raw_audio") else "")
            )
        path = locate_audio(name, source=source, root=root)
        offset, duration = _seconds(part, "offset"), _seconds(part, "duration")
        # A duration on its own does not cut: data written by others has it rounded, to describe the file.
        return AudioSpan(path, declared=duration) if offset is None else AudioSpan(path, offset, duration)
    raise ValueError(f"content is text, or a part of type text or audio, not {part!r:.60}")


def _seconds(part: dict[str, Any], key: str) -> float | None:
    value = part.get(key)
    if value is None:
        return None
    # An integer too large for a float is no length of audio either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"`{key}` is a number of seconds, not {value!r:.60}")
    if key == "duration" and not value > 0:
        raise ValueError(f"`duration` is {value}; it has to be above 0")
    return float(value)


def _only_text(parts: list[Part], where: str) -> str:
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) != 1 or len(parts) != 1:
        raise ValueError(f"the {where} holds {_describe(parts)}, where one text belongs")
    return texts[0]


def _user_turn(parts: list[Part]) -> tuple[str, AudioSpan, str | None]:
    """Reference text, reference audio and request of the layout with three turns."""
    match parts:
        case [str(text), AudioSpan() as audio, str(request)]:
            return text, audio, request
        case [str(text), AudioSpan() as audio]:
            return text, audio, None
    raise ValueError(
        f"the user turn holds {_describe(parts)}, where reference text, reference audio and request belong"
    )


def _spoken(parts: list[Part], missing: str = _NO_TARGET) -> tuple[str | None, AudioSpan]:
    """Text, if any, and audio of an assistant turn."""
    audio = [part for part in parts if isinstance(part, AudioSpan)]
    texts = [part for part in parts if isinstance(part, str)]
    if not audio:
        raise ValueError(missing)
    if len(audio) > 1 or len(texts) > 1:
        raise ValueError(f"an assistant turn holds {_describe(parts)}, where one text and one audio belong")
    return (texts[0] if texts else None), audio[0]


def _target_text(said: str | None, request: str | None) -> str:
    """The assistant's transcript; without one, what follows the known words of the request."""
    if said is not None:
        return said
    _, found, text = (request or "").partition(REQUEST)
    if not found or not text.strip():
        raise ValueError(f"no target text: neither an assistant's text nor a request that has {REQUEST!r}")
    return text.strip()


def _describe(parts: list[Part]) -> str:
    return ", ".join("text" if isinstance(part, str) else "audio" for part in parts) or "nothing"
