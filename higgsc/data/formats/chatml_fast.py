"""The usual shapes of ChatML at ten times the speed: their structure is checked by a compiled decoder.

Rows are read many at a time, a field of all of them after the other, so that little Python runs for each. What does
not fit one of the shapes to the letter is left to `chatml.record`; a test holds the two to the same answers. Nothing is
refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from higgsc.catalog.codec import SCENE_START
from higgsc.data.formats.chatml_parts import Answered, Asked, Audio, Heard, Said, System, Text
from higgsc.data.formats.protocol import Columns, Fast, Rename, Turns
from higgsc.data.formats.turns import REQUEST
from higgsc.data.records import Audio as RecordAudio
from higgsc.data.records import Record, Utterance

_NONE = Raw()
_REQUEST = f"{REQUEST} "
_LEFT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What says that rows are left to the careful reader."""


class _Misc(Struct, gc=False):
    sample_id: str | None = None


class _Sample(Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    start_index: int | None = None
    speaker: str = ""
    misc: Raw = _NONE
    id: str | None = None
    origin: str | None = None


class _Three(_Sample):
    messages: tuple[System, Asked, Answered]


class _Five(_Sample):
    messages: tuple[System, Said, Heard, Said, Heard]


class _FiveWithTranscript(_Sample):
    messages: tuple[System, Said, Heard, Said, Answered]


_Pair = tuple[str, System, str, str, Audio, str, str, Audio, Answered | None]
"""Speaker and system's turn; text, file name and audio of the reference, then of the target; the turn that holds text
and audio of the target, where there is one."""


def _of_three(rows: list[_Three]) -> list[_Pair]:
    return [
        (row.speaker, system, reference.text, heard.path, heard, said.text, spoken.path, spoken, answered)
        for row in rows
        for system, asked, answered in (row.messages,)
        for reference, heard, request in (asked.content,)
        for said, spoken in (answered.content,)
        if request.text == f"{_REQUEST}{said.text}"  # another request is kept, by the careful reader
    ]


def _of_five(rows: list[_Five]) -> list[_Pair]:
    made: list[_Pair] = []
    for row in rows:
        system, reference, heard, request, spoken = row.messages
        # The words of a request stand around the text, and have to be taken off.
        text = "" if REQUEST in request.content else request.content
        one, two = _audio(heard), _audio(spoken)
        made.append((row.speaker, system, reference.content, one.path, one, text, two.path, two, None))
    return made


def _of_five_with_transcript(rows: list[_FiveWithTranscript]) -> list[_Pair]:
    made: list[_Pair] = []
    for row in rows:
        system, reference, heard, request, answered = row.messages
        said, two = answered.content
        one, text = _audio(heard), said.text if request.content in (said.text, f"{_REQUEST}{said.text}") else ""
        made.append((row.speaker, system, reference.content, one.path, one, text, two.path, two, answered))
    return made


def _said(text: str) -> Text:
    return Text("text", text)


def _audio(turn: Heard) -> Audio:
    return turn.content if isinstance(turn.content, Audio) else turn.content[0]


_Shape = tuple[Callable[[bytes], Any], Callable[[list[Any]], list[_Pair]]]
"""A decoder of a row, and what takes apart many that it has decoded."""

_SHAPES: tuple[_Shape, ...] = (
    (msgspec.json.Decoder(_Three).decode, _of_three),
    (msgspec.json.Decoder(_Five).decode, _of_five),
    (msgspec.json.Decoder(_FiveWithTranscript).decode, _of_five_with_transcript),
)
_misc = msgspec.json.Decoder(_Misc).decode


def fast() -> Fast:
    """A reader of rows that tries the shape of the rows before first."""
    shapes = list(_SHAPES)

    def read(rows: Sequence[bytes]) -> _Rows | None:
        for shape in shapes:
            decode, pairs = shape
            try:
                samples: list[_Sample] = list(map(decode, rows))
                ids, made = _ids(samples), pairs(samples)
            except _LEFT:
                continue
            if len(made) < len(samples):
                return None
            if shape is not shapes[0]:
                shapes.remove(shape)
                shapes.insert(0, shape)
            read = _Rows(samples, ids, made)
            return read if read.sound() else None
        return None

    return read


def _ids(samples: list[_Sample]) -> list[str | None]:
    """Their names, and a look at what is kept as it stands: nothing else decodes it."""
    b"".join([row.misc for row in samples]).decode()
    return [row.id if row.id is not None or row.misc is _NONE else _misc(row.misc).sample_id for row in samples]


class _Rows:
    """Samples of one shape."""

    def __init__(self, samples: list[_Sample], ids: list[str | None], pairs: list[_Pair]) -> None:
        self._samples, self._pairs = samples, pairs
        speakers, self._systems, reference_texts, heard, _, texts, spoken, _, _ = zip(*pairs, strict=True)
        # Rows without an id are not sound.
        self._columns = Columns(ids, speakers, texts, reference_texts, spoken + heard)  # type: ignore[arg-type]

    def sound(self) -> bool:
        """Whether nothing about any of them is unusual."""
        ids, speakers, texts, reference_texts, names = self._columns
        return (
            all(ids)
            and "".join(ids).isprintable()
            and "".join(speakers).isprintable()
            and all(system.strip() and SCENE_START not in system for system in {turn.content for turn in self._systems})
            and all(map(str.strip, reference_texts))
            and all(map(str.strip, texts))
            and all(map(str.strip, names))
        )

    def columns(self) -> Columns:
        return self._columns

    def turns(self, rename: Rename | None) -> Iterable[Turns]:
        speakers, systems, reference_texts, _, heard, texts, _, spoken, answered = zip(*self._pairs, strict=True)
        for audio in heard + spoken:
            if audio.raw_audio is not None:
                audio.raw_audio = None
        if rename is not None:
            for audio in heard + spoken:
                audio.path = rename(audio.path)
        if None in answered:
            answered = tuple([Answered("assistant", pair) for pair in zip(map(_said, texts), spoken, strict=True)])
        misc = [UNSET if row.misc is _NONE else row.misc for row in self._samples]
        origins = [row.origin for row in self._samples]
        return zip(
            self._columns.ids, systems, reference_texts, heard, texts, answered, speakers, origins, misc, strict=True
        )

    def records(self, origins: Iterable[str | None]) -> list[Record]:
        return [
            Record(
                name,
                Utterance(said, RecordAudio(target, spoken.offset, spoken.duration)),
                (Utterance(text, RecordAudio(reference, heard.offset, heard.duration)),),
                speaker,
                system.content,
                None,
                None if row.misc is _NONE else {"misc": row.misc},
                row.origin or origin,
            )
            for row, name, origin, (speaker, system, text, reference, heard, said, target, spoken, _) in zip(
                self._samples, self._columns.ids, origins, self._pairs, strict=False
            )
        ]
