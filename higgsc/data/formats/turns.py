"""Conversations of voice cloning: turns of text and audio to references and a target.

Three turns, the reference in the user's:

    system · user [reference text, reference audio, "Please generate speech for given text in reference
    audio's voice: ..."] · assistant [target text, target audio]

Five turns, the layout that the model was trained on; more pairs before the target are more references:

    system · user: reference text · assistant: reference audio · user: target text · assistant: target audio

Without a reference: system · user: target text · assistant: target audio. Without the last turn, or without audio
in it, it is a prompt to generate from.
"""

from __future__ import annotations

import re
from typing import Any

from higgsc.catalog.codec import SCENE_END, SCENE_START
from higgsc.data.formats.fields import said, seconds
from higgsc.data.records import Audio, Utterance

REQUEST = "Please generate speech for given text in reference audio's voice:"
"""What precedes the target text in a user's request."""

Part = str | Audio
Turn = tuple[str, list[Part]]
"""A role and what it says; blank text is left out."""

_SCENE = re.compile(rf"\s*{re.escape(SCENE_START)}(.*?){re.escape(SCENE_END)}\s*", re.DOTALL)


def split_system(turns: list[Turn]) -> tuple[str | None, str | None, list[Turn]]:
    """System text and scene, each None if there is none, and the turns that follow."""
    system = scene = None
    if turns and turns[0][0] == "system":
        system = only_text(turns[0][1], "system turn") if turns[0][1] else None  # a blank one says nothing
        turns = turns[1:]
        if system and (marked := _SCENE.search(system)):
            scene = marked.group(1).strip() or None
            system = _SCENE.sub("\n\n", system, count=1).strip() or None
    if turns and turns[0][0] == "scene":
        scene = only_text(turns[0][1], "scene")
        turns = turns[1:]
    return system, scene, turns


def dialogue(turns: list[Turn], *, plain_request: bool = False) -> tuple[tuple[Utterance, ...], Utterance, str | None]:
    """References and target of the turns after the system's, and the request if it asks for another text.

    Args:
        turns: They alternate between `user` and `assistant`.
        plain_request: The last text of a user's turn with audio is the target's text as it stands; otherwise it has
            to follow the words of `REQUEST`.

    Raises:
        ValueError: The order of turns is not one of a voice-cloning sample, or a part is missing.
    """
    roles = [role for role, _ in turns]
    if not turns or roles != [("user", "assistant")[number % 2] for number in range(len(turns))]:
        raise ValueError(
            f"unknown order of turns: {', '.join(roles) or 'none'}; voice cloning is user, assistant or "
            "user, assistant, user, assistant after the system turn"
        )
    answer = turns[-1][1] if len(turns) % 2 == 0 else []
    text, audio = _spoken(answer)
    asked = turns[-2 if len(turns) % 2 == 0 else -1][1]
    if len(turns) <= 2 and any(isinstance(part, Audio) for part in asked):
        reference, request = _user_turn(asked)
        target = _target_text(text, request, plain=plain_request)
        return (reference,), Utterance(target, audio), _other(request, target)
    references = tuple(
        _reference(number, turns[2 * number][1], turns[2 * number + 1][1]) for number in range((len(turns) - 1) // 2)
    )
    request = only_text(asked, "second user turn" if len(references) == 1 else "last user turn")
    target = _target_text(text, request, plain=REQUEST not in request)
    return references, Utterance(target, audio), _other(request, target)


def _other(request: str | None, target: str) -> str | None:
    """A request that is more than the target's text, or that text after the usual words."""
    return None if request is None or request in (target, f"{REQUEST}{target}", f"{REQUEST} {target}") else request


def part_of(part: Any) -> Part:
    """A piece of a turn's content: a string, or an object of type text or audio."""
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
        return Audio(name, seconds(part, "offset"), seconds(part, "duration"))
    raise ValueError(f"content is text, or a part of type text or audio, not {part!r:.60}")


def turn_of(message: Any) -> Turn:
    """Role and parts of a message; adjacent texts stay apart."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"a turn is an object with a role, not {message!r:.60}")
    content = message.get("content")
    parts = [part_of(part) for part in (content if isinstance(content, list) else [content])]
    return message["role"], [part for part in parts if not isinstance(part, str) or part.strip()]


def only_text(parts: list[Part], where: str) -> str:
    """The text of a turn that holds nothing else."""
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) != 1 or len(parts) != 1:
        raise ValueError(f"the {where} holds {_describe(parts)}, where one text belongs")
    return said(texts[0], where)


def _reference(number: int, asked: list[Part], answer: list[Part]) -> Utterance:
    which = "first" if number == 0 else f"{number + 1}."
    text = only_text(asked, f"{which} user turn")
    _, audio = _spoken(answer)
    if audio is None:
        raise ValueError(f"the {which} assistant turn holds no reference audio")
    return Utterance(text, audio)


def _user_turn(parts: list[Part]) -> tuple[Utterance, str | None]:
    """Reference and request of the layout with three turns."""
    match parts:
        case [str(text), Audio() as audio, str(request)]:
            return Utterance(said(text, "reference text"), audio), request
        case [str(text), Audio() as audio]:
            return Utterance(said(text, "reference text"), audio), None
    raise ValueError(
        f"the user turn holds {_describe(parts)}, where reference text, reference audio and request belong"
    )


def _spoken(parts: list[Part]) -> tuple[str | None, Audio | None]:
    """Text and audio of an assistant's turn, each None if it is missing."""
    audio = [part for part in parts if isinstance(part, Audio)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(audio) > 1 or len(texts) > 1:
        raise ValueError(f"an assistant turn holds {_describe(parts)}, where one text and one audio belong")
    return (texts[0] if texts else None), (audio[0] if audio else None)


def _target_text(transcript: str | None, request: str | None, *, plain: bool) -> str:
    """The assistant's transcript; without one, what follows the known words of the request, or a plain request."""
    if transcript is not None:
        return said(transcript, "target text")
    if plain and request is not None:
        return said(request, "target text")
    _, found, text = (request or "").partition(REQUEST)
    if not found or not text.strip():
        raise ValueError(f"no target text: neither an assistant's text nor a request that has {REQUEST!r}")
    return said(text.strip(), "target text")


def _describe(parts: list[Part]) -> str:
    return ", ".join("text" if isinstance(part, str) else "audio" for part in parts) or "nothing"
