"""The parts of ChatML in their usual form, as the quick reader takes them and as conversion writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field


class Text(Struct, gc=False, forbid_unknown_fields=True):
    """Something said or written."""

    type: Literal["text"]
    text: str


class Audio(Struct, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """A recording."""

    type: Literal["audio"]
    path: str = field(name="audio_url")
    offset: Annotated[float, Meta(ge=0, lt=1e9)] | None = None
    duration: Annotated[float, Meta(gt=0, lt=1e9)] | None = None
    raw_audio: str | None = None


class System(Struct, gc=False, forbid_unknown_fields=True):
    """What kind of speech is wanted."""

    role: Literal["system"]
    content: str


class Said(Struct, gc=False, forbid_unknown_fields=True):
    """A user's turn of text alone."""

    role: Literal["user"]
    content: str


class Asked(Struct, gc=False, forbid_unknown_fields=True):
    """A user's turn that holds the reference."""

    role: Literal["user"]
    content: tuple[Text, Audio, Text]


class Heard(Struct, gc=False, forbid_unknown_fields=True):
    """An assistant's turn of audio alone."""

    role: Literal["assistant"]
    content: Audio | tuple[Audio]


class Answered(Struct, gc=False, forbid_unknown_fields=True):
    """An assistant's turn of a text and its audio."""

    role: Literal["assistant"]
    content: tuple[Text, Audio]
