"""The usual shapes of ChatML at ten times the speed: their structure is checked by a compiled decoder.

What does not fit one of the two shapes to the letter is left to `chatml.record`; a test holds the two to the same
answers. Nothing is refused here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from higgsc.catalog.codec import SCENE_START
from higgsc.data.formats.protocol import Fast
from higgsc.data.formats.turns import REQUEST
from higgsc.data.records import Audio, Record, Utterance

_Offset = Annotated[float, Meta(ge=0, lt=1e9)]
_Duration = Annotated[float, Meta(gt=0, lt=1e9)]
_NONE = Raw()
_LEFT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What says that a line is left to the careful reader."""


class _Part(Struct, gc=False, forbid_unknown_fields=True):
    pass


class _Text(_Part):
    type: Literal["text"]
    text: str


class _Audio(_Part):
    type: Literal["audio"]
    audio_url: str
    raw_audio: str | None = None
    duration: _Duration | None = None
    offset: _Offset | None = None


class _System(_Part):
    role: Literal["system"]
    content: str


class _Asked(_Part):
    role: Literal["user"]
    content: tuple[_Text, _Audio, _Text]


class _Answered(_Part):
    role: Literal["assistant"]
    content: tuple[_Text, _Audio]


class _Said(_Part):
    role: Literal["user"]
    content: str


class _Heard(_Part):
    role: Literal["assistant"]
    content: _Audio | tuple[_Audio]


class _Misc(Struct, gc=False):
    sample_id: str | None = None


class _Sample(_Part, kw_only=True):
    id: str | None = None
    start_index: int | None = None
    speaker: str = ""
    misc: Raw = _NONE
    origin: str | None = None


class _Three(_Sample):
    messages: tuple[_System, _Asked, _Answered]


class _Five(_Sample):
    messages: tuple[_System, _Said, _Heard, _Said, _Heard]


class _FiveWithTranscript(_Sample):
    messages: tuple[_System, _Said, _Heard, _Said, _Answered]


_three = msgspec.json.Decoder(_Three).decode
_five = msgspec.json.Decoder(_Five).decode
_transcribed = msgspec.json.Decoder(_FiveWithTranscript).decode
_misc = msgspec.json.Decoder(_Misc).decode


def fast() -> Fast:
    """A reader of lines that tries the shape of the line before first."""
    shapes = [_of_three, _of_five, _of_five_with_transcript]

    first = shapes[0]

    def read(line: bytes) -> Record | None:
        nonlocal first
        try:
            return first(line)
        except _LEFT:
            pass
        for shape in shapes:
            try:
                made = shape(line)
            except _LEFT:
                continue
            first = shape
            return made
        return None

    return read


def _of_three(line: bytes) -> Record | None:
    row = _three(line)
    system, asked, answered = row.messages
    reference, heard, _ = asked.content
    said, spoken = answered.content
    if not (reference.text.strip() and said.text.strip()):
        return None
    return _record(row, system.content, reference.text, heard, said.text, spoken)


def _of_five(line: bytes) -> Record | None:
    row = _five(line)
    system, reference, heard, request, spoken = row.messages
    text = request.content
    if not text.strip() or not reference.content.strip() or REQUEST in text:
        return None
    first = heard.content if isinstance(heard.content, _Audio) else heard.content[0]
    second = spoken.content if isinstance(spoken.content, _Audio) else spoken.content[0]
    return _record(row, system.content, reference.content, first, text, second)


def _of_five_with_transcript(line: bytes) -> Record | None:
    row = _transcribed(line)
    system, reference, heard, _, answered = row.messages
    said, spoken = answered.content
    if not (said.text.strip() and reference.content.strip()):
        return None
    first = heard.content if isinstance(heard.content, _Audio) else heard.content[0]
    return _record(row, system.content, reference.content, first, said.text, spoken)


def _record(row: _Sample, system: str, text: str, heard: _Audio, said: str, spoken: _Audio) -> Record | None:
    name, speaker, extra = row.id, row.speaker, None
    if row.misc is not _NONE:
        extra = {"misc": row.misc}
        if name is None:
            name = _misc(row.misc).sample_id
    if not (
        name
        and name.isprintable()
        and speaker.isprintable()
        and SCENE_START not in system
        and system.strip()
        and heard.audio_url.strip()
        and spoken.audio_url.strip()
    ):
        return None
    return Record(
        name,
        Utterance(said, Audio(spoken.audio_url, spoken.offset, spoken.duration)),
        (Utterance(text, Audio(heard.audio_url, heard.offset, heard.duration)),),
        speaker,
        system,
        None,
        extra,
        row.origin,
    )
