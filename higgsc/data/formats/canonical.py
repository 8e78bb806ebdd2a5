"""The canonical form: a `Record` a line, as `higgsc data convert` writes it.

{"id": "s-1", "speaker": "noor", "references": [{"text": "...", "audio": {"path": "a.wav"}}],
 "target": {"text": "...", "audio": {"path": "b.wav", "offset": 1.5, "duration": 2.0}}}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from higgsc.data.formats import fields
from higgsc.data.formats.protocol import Columns, Fast, Format, Rename
from higgsc.data.records import Audio, Record, Utterance

_decode = msgspec.json.Decoder(Record).decode
_LEFT = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What says that rows are left to the careful reader."""
_KEYS = frozenset(("id", "speaker", "system", "scene", "references", "target", "extra", "origin"))


def detect(row: Any, _path: Path) -> str | None:
    """A target of text and audio."""
    target = row.get("target") if isinstance(row, dict) else None
    return "an object `target` with a `text`" if isinstance(target, dict) and "text" in target else None


def record(row: Any, default_id: str, _path: Path) -> Record:
    """The record of a row.

    Raises:
        ValueError: A field is unknown, missing or malformed.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a sample is a JSON object, not {row!r:.60}")
    if unknown := sorted(set(row) - _KEYS):
        raise ValueError(f"unknown field{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}")
    references = row.get("references", [])
    if not isinstance(references, list):
        raise ValueError(f"`references` is a list, not {references!r:.60}")
    extra, origin = row.get("extra"), row.get("origin")
    if not isinstance(extra, dict | None) or not isinstance(origin, str | None):
        raise ValueError("`extra` is an object and `origin` a string")
    return Record(
        id=fields.name_of(row.get("id"), "id") or default_id,
        speaker=fields.name_of(row.get("speaker"), "speaker") or "",
        system=_optional(row, "system"),
        scene=_optional(row, "scene"),
        references=tuple(_utterance(value, "reference") for value in references),
        target=_utterance(row.get("target"), "target"),
        extra=extra,
        origin=origin,
    )


def _optional(row: dict[str, Any], key: str) -> str | None:
    return None if row.get(key) is None else fields.text(row, (key,), f"{key} text")


def _utterance(value: Any, what: str) -> Utterance:
    if not isinstance(value, dict):
        raise ValueError(f"a {what} is an object of `text` and `audio`, not {value!r:.60}")
    audio = value.get("audio")
    if not isinstance(audio, dict | None):
        raise ValueError(f"`audio` of the {what} is an object with a `path`, not {audio!r:.60}")
    named = None if audio is None else fields.audio(audio, ("path",), what)
    if audio is not None and named is None:
        raise ValueError(f"`audio` of the {what} has no `path`")
    if named is None and what == "reference":
        raise ValueError("a reference without audio")
    return Utterance(fields.text(value, ("text",), f"{what} text"), named)


def fast() -> Fast:
    """A reader that takes what the compiled decoder takes, if nothing about it is unusual."""

    def read(rows: Sequence[bytes]) -> _Rows | None:
        try:
            made = list(map(_decode, rows))
        except _LEFT:
            return None
        return _Rows(made) if all(map(_usual, made)) else None

    return read


@dataclass(frozen=True, slots=True)
class _Rows:
    """Records as they were decoded."""

    made: list[Record]

    def columns(self) -> Columns | None:
        targets = [record.target.audio for record in self.made]
        references = [record.references[0] for record in self.made if len(record.references) == 1]
        heard = [spoken.audio for spoken in references]
        named = [audio.path for audio in targets + heard if audio is not None]
        if len(named) != 2 * len(self.made):
            return None
        return Columns(
            [record.id for record in self.made],
            [record.speaker for record in self.made],
            [record.target.text for record in self.made],
            [spoken.text for spoken in references],
            named,
        )

    def turns(self, _: Rename | None) -> None:
        return None

    def records(self, origins: Iterable[str | None]) -> list[Record]:
        for record, origin in zip(self.made, origins, strict=False):
            if record.origin is None and origin is not None:
                # They were made for this reader alone, and copying takes as long as reading.
                msgspec.structs.force_setattr(record, "origin", origin)
        return self.made


def _usual(made: Record) -> bool:
    if not (made.id and made.id.isprintable() and made.speaker.isprintable()):
        return False
    if (made.system is not None and not made.system.strip()) or (made.scene is not None and not made.scene.strip()):
        return False
    if not made.target.text.strip() or (made.target.audio is not None and not _sound(made.target.audio)):
        return False
    return all(spoken.text.strip() and spoken.audio is not None and _sound(spoken.audio) for spoken in made.references)


def _sound(audio: Audio) -> bool:
    return bool(
        audio.path.strip()
        and (audio.offset is None or 0 <= audio.offset < 1e9)
        and (audio.duration is None or 0 < audio.duration < 1e9)
    )


FORMAT = Format(name="canonical", summary="what `higgsc data convert` writes", detect=detect, record=record, fast=fast)
