"""Records to lines of canonical JSON or of ChatML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct

from higgsc.data.formats.chatml_parts import Answered, Heard, Said, System, Text
from higgsc.data.formats.chatml_parts import Audio as AudioPart
from higgsc.data.formats.protocol import Rename, Turns
from higgsc.data.formats.turns import REQUEST
from higgsc.data.records import Audio, Record, Utterance

UNWRITABLE = (ValueError, OverflowError, TypeError, RecursionError)
"""What is raised where one of the records cannot be written."""

_encoder = msgspec.json.Encoder()


class _Scene(Struct, gc=False):
    role: Literal["scene"]
    content: str


_Turn = System | _Scene | Said | Heard | Answered


class _Sample(Struct, gc=False, omit_defaults=True):
    id: str
    messages: Sequence[_Turn]
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


def write_turns(rows: Iterable[Turns], origins: Sequence[str]) -> bytes:
    """As `write_chatml`; samples that name no origin get theirs."""
    samples = [
        _Sample(
            name,
            (
                system,
                Said("user", text),
                Heard("assistant", (heard,)),
                Said("user", f"{REQUEST}{said}" if REQUEST in said else said),
                answered,
            ),
            4,
            speaker,
            own or origin,
            misc,
        )
        for (name, system, text, heard, said, answered, speaker, own, misc), origin in zip(rows, origins, strict=True)
    ]
    return _encoder.encode_lines(samples)


def _sample(record: Record) -> _Sample | dict[str, Any]:
    # Without calls for the parts: they would take as long as all the rest.
    messages: list[_Turn] = []
    if record.system is not None:
        messages.append(System("system", record.system))
    if record.scene is not None:
        messages.append(_Scene("scene", record.scene))
    for spoken in record.references:
        heard = spoken.audio
        assert heard is not None, "readers refuse a reference without audio"
        messages.append(Said("user", spoken.text))
        messages.append(Heard("assistant", (AudioPart("audio", heard.path, heard.offset, heard.duration),)))
    text, audio = record.target.text, record.target.audio
    # What follows the first words of a request is the text, even if it has such words in it itself.
    messages.append(Said("user", f"{REQUEST}{text}" if REQUEST in text else text))
    if audio is not None:
        spoken_part = AudioPart("audio", audio.path, audio.offset, audio.duration)
        messages.append(Answered("assistant", (Text("text", text), spoken_part)))
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
