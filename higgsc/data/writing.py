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


class _Turn(Struct, gc=False):
    role: str
    content: str | tuple[_Audio] | tuple[_Text, _Audio]


class _Sample(Struct, gc=False, omit_defaults=True):
    id: str
    messages: list[_Turn]
    start_index: int
    speaker: str = ""
    origin: str | None = None
    misc: Any = UNSET


_RESERVED = frozenset((*_Sample.__struct_fields__, "audios")) - {"misc"}


def write_canonical(records: Sequence[Record], rename: Rename | None) -> bytes:
    """A record a line."""
    if rename is not None:
        records = [_renamed(record, rename) for record in records]
    return _encoder.encode_lines(records)


def write_chatml(records: Sequence[Record], rename: Rename | None) -> bytes:
    """The layout that the model was trained on; `start_index` is that of the target's turn."""
    samples = [_sample(record, rename) for record in records]
    return _encoder.encode_lines(samples)


def _sample(record: Record, rename: Rename | None) -> _Sample | dict[str, Any]:
    messages: list[_Turn] = []
    if record.system is not None:
        messages.append(_Turn("system", record.system))
    if record.scene is not None:
        messages.append(_Turn("scene", record.scene))
    for spoken in record.references:
        assert spoken.audio is not None, "readers refuse a reference without audio"
        messages.append(_Turn("user", spoken.text))
        messages.append(_Turn("assistant", (_part(spoken.audio, rename),)))
    # What follows the first words of a request is the text, even if it has such words in it itself.
    text, audio = record.target.text, record.target.audio
    messages.append(_Turn("user", f"{REQUEST}{text}" if REQUEST in text else text))
    if audio is not None:
        messages.append(_Turn("assistant", (_Text(text), _part(audio, rename))))
    sample = _Sample(record.id, messages, len(messages) - 1, record.speaker, record.origin)
    if not record.extra:
        return sample
    if clash := sorted(_RESERVED & record.extra.keys()):
        raise ValueError(f"`extra` has the fields {', '.join(clash)}, which ChatML uses itself")
    if len(record.extra) == 1 and "misc" in record.extra:
        sample.misc = record.extra["misc"]
        return sample
    return {**msgspec.to_builtins(sample), **record.extra}


def _part(audio: Audio, rename: Rename | None) -> _Audio:
    return _Audio(audio.path if rename is None else rename(audio.path), audio.offset, audio.duration)


def _renamed(record: Record, rename: Rename) -> Record:
    references = tuple([_moved(spoken, rename) for spoken in record.references])
    return Record(
        record.id, _moved(record.target, rename), references, record.speaker, record.system, record.scene,
        record.extra, record.origin,
    )  # fmt: skip


def _moved(spoken: Utterance, rename: Rename) -> Utterance:
    audio = spoken.audio
    if audio is None:
        return spoken
    return Utterance(spoken.text, Audio(rename(audio.path), audio.offset, audio.duration))
