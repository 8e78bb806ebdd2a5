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


_Columns = tuple[
    Sequence[str],
    Sequence[System],
    Sequence[str],
    Sequence[Audio],
    Sequence[str],
    Sequence[Audio],
    Sequence[Answered] | None,
]
"""Of all rows: speakers and systems' turns; texts and audio of the references, then of the targets; the turns that hold
text and audio of the targets, where there are such."""


def _of_three(rows: list[_Three]) -> _Columns | None:
    systems, asked, answered = zip(*[row.messages for row in rows], strict=True)
    references, heard, requests = zip(*[turn.content for turn in asked], strict=True)
    said, spoken = zip(*[turn.content for turn in answered], strict=True)
    texts = [part.text for part in said]
    if [part.text for part in requests] != [_REQUEST + text for text in texts]:
        return None  # another request is kept, by the careful reader
    return [row.speaker for row in rows], systems, [part.text for part in references], heard, texts, spoken, answered


def _of_five(rows: list[_Five]) -> _Columns | None:
    systems, references, heard, requests, spoken = zip(*[row.messages for row in rows], strict=True)
    texts = [turn.content for turn in requests]
    if any(REQUEST in text for text in texts):
        return None  # the words of a request stand around the text, and have to be taken off
    said = [turn.content for turn in references]
    return [row.speaker for row in rows], systems, said, _audio(heard), texts, _audio(spoken), None


def _of_five_with_transcript(rows: list[_FiveWithTranscript]) -> _Columns | None:
    systems, references, heard, requests, answered = zip(*[row.messages for row in rows], strict=True)
    said, spoken = zip(*[turn.content for turn in answered], strict=True)
    texts = [part.text for part in said]
    for request, text in zip(requests, texts, strict=True):
        if request.content not in (text, _REQUEST + text):
            return None
    told = [turn.content for turn in references]
    return [row.speaker for row in rows], systems, told, _audio(heard), texts, spoken, answered


def _said(text: str) -> Text:
    return Text("text", text)


def _audio(turns: Iterable[Heard]) -> list[Audio]:
    return [turn.content if isinstance(turn.content, Audio) else turn.content[0] for turn in turns]


_Shape = tuple[Callable[[bytes], Any], Callable[[list[Any]], _Columns | None]]
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
            decode, columns = shape
            try:
                samples: list[_Sample] = list(map(decode, rows))
                ids, made = _ids(samples), columns(samples)
            except _LEFT:
                continue
            if made is None:
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

    def __init__(self, samples: list[_Sample], ids: list[str | None], columns: _Columns) -> None:
        self._samples, self._parts = samples, columns
        speakers, _, reference_texts, heard, texts, spoken, _ = columns
        names = [audio.path for audio in spoken]
        names += [audio.path for audio in heard]
        # Rows without an id are not sound.
        self._columns = Columns(ids, speakers, texts, reference_texts, names)  # type: ignore[arg-type]

    def sound(self) -> bool:
        """Whether nothing about any of them is unusual."""
        ids, speakers, texts, reference_texts, names = self._columns
        return (
            all(ids)
            and "".join(ids).isprintable()
            and "".join(speakers).isprintable()
            and all(
                system.strip() and SCENE_START not in system for system in {turn.content for turn in self._parts[1]}
            )
            and all(map(str.strip, reference_texts))
            and all(map(str.strip, texts))
            and all(map(str.strip, names))
        )

    def columns(self) -> Columns:
        return self._columns

    def turns(self, rename: Rename | None) -> Iterable[Turns]:
        speakers, systems, reference_texts, heard, texts, spoken, answered = self._parts
        both = (*heard, *spoken)
        for audio in both:
            if audio.raw_audio is not None:
                audio.raw_audio = None
        if rename is not None:
            for audio in both:
                audio.path = rename(audio.path)
        if answered is None:
            answered = [Answered("assistant", pair) for pair in zip(map(_said, texts), spoken, strict=True)]
        misc = [UNSET if row.misc is _NONE else row.misc for row in self._samples]
        origins = [row.origin for row in self._samples]
        return zip(
            self._columns.ids, systems, reference_texts, heard, texts, answered, speakers, origins, misc, strict=True
        )

    def records(self, origins: Iterable[str | None]) -> list[Record]:
        speakers, systems, reference_texts, heard, texts, spoken, _ = self._parts
        return [
            Record(
                name,
                Utterance(said, RecordAudio(two.path, two.offset, two.duration)),
                (Utterance(text, RecordAudio(one.path, one.offset, one.duration)),),
                speaker,
                system.content,
                None,
                None if row.misc is _NONE else {"misc": row.misc},
                row.origin or origin,
            )
            for row, name, origin, speaker, system, text, one, said, two in zip(
                self._samples,
                self._columns.ids,
                origins,
                speakers,
                systems,
                reference_texts,
                heard,
                texts,
                spoken,
                strict=False,
            )
        ]
