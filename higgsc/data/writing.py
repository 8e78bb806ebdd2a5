"""Records to lines of canonical JSON or of ChatML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from higgsc.data.formats.turns import REQUEST
from higgsc.data.records import Audio, Record, Utterance

Rename = Callable[[str], str]
"""How a file is named as seen from the output."""
Write = Callable[[Sequence[Record], Rename | None], bytes]
"""Records to as many lines; raises one of `UNWRITABLE` if one of them cannot be written."""
UNWRITABLE = (ValueError, OverflowError, TypeError, RecursionError)

_encoder = msgspec.json.Encoder()


class _Text(Struct, gc=False, tag_field="type", tag="text"):
    text: str


class _Audio(Struct, gc=False, omit_defaults=True, tag_field="type", tag="audio"):
    audio_url: str
    offset: float | None = None
    duration: float | None = None


class _System(Struct, gc=False, tag_field="role", tag="system"):
    content: str


class _Scene(Struct, gc=False, tag_field="role", tag="scene"):
    content: str


class _User(Struct, gc=False, tag_field="role", tag="user"):
    content: str


class _Assistant(Struct, gc=False, tag_field="role", tag="assistant"):
    content: tuple[_Audio] | tuple[_Text, _Audio]


class _Sample(Struct, gc=False, omit_defaults=True):
    id: str
    messages: list[_System | _Scene | _User | _Assistant]
    start_index: int
    speaker: str = ""
    origin: str | None = None
    misc: Any = UNSET


_RESERVED = frozenset((*_Sample.__struct_fields__, "audios")) - {"misc"}


def write_canonical(records: Sequence[Record], rename: Rename | None) -> bytes:
    """A record a line."""
    return _encoder.encode_lines(_renamed(records, rename))


def write_chatml(records: Sequence[Record], rename: Rename | None) -> bytes:
    """The layout that the model was trained on; `start_index` is that of the target's turn."""
    return _encoder.encode_lines(list(map(_sample, _renamed(records, rename))))


def _sample(record: Record) -> _Sample | dict[str, Any]:
    # Without calls for the parts: they would take as long as all the rest.
    messages: list[_System | _Scene | _User | _Assistant] = []
    if record.system is not None:
        messages.append(_System(record.system))
    if record.scene is not None:
        messages.append(_Scene(record.scene))
    for spoken in record.references:
        heard = spoken.audio
        assert heard is not None, "readers refuse a reference without audio"
        messages.append(_User(spoken.text))
        messages.append(_Assistant((_Audio(heard.path, heard.offset, heard.duration),)))
    # What follows the first words of a request is the text, even if it has such words in it itself.
    text, audio = record.target.text, record.target.audio
    messages.append(_User(f"{REQUEST}{text}" if REQUEST in text else text))
    if audio is not None:
        messages.append(_Assistant((_Text(text), _Audio(audio.path, audio.offset, audio.duration))))
    extra = record.extra
    if not extra:
        return _Sample(record.id, messages, len(messages) - 1, record.speaker, record.origin)
    if len(extra) == 1 and "misc" in extra:
        return _Sample(record.id, messages, len(messages) - 1, record.speaker, record.origin, extra["misc"])
    if clash := sorted(_RESERVED & extra.keys()):
        raise ValueError(f"`extra` has the fields {', '.join(clash)}, which ChatML uses itself")
    sample = _Sample(record.id, messages, len(messages) - 1, record.speaker, record.origin)
    return {**msgspec.to_builtins(sample), **extra}


def _renamed(records: Sequence[Record], rename: Rename | None) -> Sequence[Record]:
    if rename is None:
        return records
    return [
        Record(
            record.id, _moved(record.target, rename), tuple([_moved(spoken, rename) for spoken in record.references]),
            record.speaker, record.system, record.scene, record.extra, record.origin,
        )
        for record in records
    ]  # fmt: skip


def _moved(spoken: Utterance, rename: Rename) -> Utterance:
    audio = spoken.audio
    if audio is None:
        return spoken
    return Utterance(spoken.text, Audio(rename(audio.path), audio.offset, audio.duration))
