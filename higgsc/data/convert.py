"""`higgsc data convert`: a data file of any format to canonical records or to ChatML, a piece at a time."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.formats.turns import REQUEST
from higgsc.data.records import Audio, Record, Rejected, Utterance
from higgsc.data.samples import SourceFile

OutputFormat = Literal["canonical", "chatml"]

_ABSOLUTE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What became of a data file."""

    written: int
    rejected: int
    prompts: int
    """Of the written, those without target audio: to generate from, not to learn from."""
    singles: int
    """Of the written, those without a reference."""
    causes: tuple[tuple[str, int], ...]
    """Why samples were rejected, quoted values left out, the most frequent first."""
    rejects: Path | None
    """Where the rejected are listed; None if there are none."""


def convert(source: SourceFile, output: Path, *, to: OutputFormat = "canonical") -> Converted:
    """Convert a data file. Texts stay as they are; audio stays where it is and is named as seen from the output.

    Args:
        source: The file, and how to read it.
        output: The file to write, one sample a line; whole or not at all. Rejected samples go to a file beside it
            that ends in `.rejected.jsonl`, each with its cause and place.
        to: What to write.

    Raises:
        StepError: The source is missing (66), cannot be read, or holds no sample that can be (65); the output would
            overwrite the source (2).
    """
    if output.exists() and (not output.is_file() or output.samefile(source.path)):
        what = "the output is the data file itself" if output.is_file() else "the output is not a file"
        raise StepError(what, code=ExitCode.USAGE, path=output, help="name another one")
    reject_list = output.with_name(f"{output.name}.rejected.jsonl")
    rename = _renamer(source.path.parent, output.parent)
    place = os.path.relpath(source.path, output.parent)
    tally, causes = Counter[str](), Counter[str]()
    encoder = _ENCODERS[to](rename)
    with _writing(output) as stream, _writing(reject_list) as rejects:
        piece, first = bytearray(), ""
        for line, read in source.records(root=source.path.parent):
            if isinstance(read, Record):
                try:
                    piece += encoder(read, read.origin or f"{place}:{line}")
                except (ValueError, OverflowError, TypeError, RecursionError) as error:
                    read = Rejected(id=read.id, source=source.path, line=line, reason=f"cannot be written: {error}")
                else:
                    piece += b"\n"
                    tally["written"] += 1
                    tally["prompts"] += read.target.audio is None
                    tally["singles"] += not read.references
                    if len(piece) > _PIECE:
                        stream.write(piece)
                        piece.clear()
                    continue
            tally["rejected"] += 1
            causes[cause_of(read.reason)] += 1
            first = first or f"; the first, {place}:{line}: {read.reason}"
            rejects.write(_plain({"id": read.id, "place": f"{place}:{line}", "cause": read.reason}) + b"\n")
        stream.write(piece)
        if not tally["written"]:
            raise StepError(f"none of {tally['rejected']} samples can be read{first}", path=source.path)
    if not tally["rejected"]:
        reject_list.unlink()
    return Converted(
        written=tally["written"],
        rejected=tally["rejected"],
        prompts=tally["prompts"],
        singles=tally["singles"],
        causes=tuple(causes.most_common()),
        rejects=reject_list if tally["rejected"] else None,
    )


def cause_of(reason: str) -> str:
    """A reason without what differs from sample to sample, so that reasons can be counted."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\{.*|-?\d[\d.]*", "…", reason)


def _renamer(before: Path, after: Path) -> Callable[[str], str] | None:
    """How a name relative to one folder is named relative to another; None if it is the same folder."""
    way = os.path.relpath(before, after)
    if way == ".":
        return None

    def rename(name: str) -> str:
        if _ABSOLUTE.match(name):
            return name
        return os.path.normpath(f"{way}/{name}") if "." in name[:3] or "/." in name else f"{way}/{name}"

    return rename


Encoder = Callable[[Record, str], bytes]
_plain = msgspec.json.Encoder().encode


def _moved(spoken: Utterance, rename: Callable[[str], str]) -> Utterance:
    audio = spoken.audio
    if audio is None:
        return spoken
    return Utterance(spoken.text, Audio(rename(audio.path), audio.offset, audio.duration))


def _canonical(rename: Callable[[str], str] | None) -> Encoder:
    def named(record: Record, origin: str) -> bytes:
        # The record was made for this file alone, and copying it would take as long as reading it.
        msgspec.structs.force_setattr(record, "origin", origin)
        return _plain(record)

    if rename is None:
        return named

    def encode(record: Record, origin: str) -> bytes:
        return _plain(
            Record(
                id=record.id,
                speaker=record.speaker,
                system=record.system,
                scene=record.scene,
                references=tuple([_moved(spoken, rename) for spoken in record.references]),
                target=_moved(record.target, rename),
                extra=record.extra,
                origin=origin,
            )
        )

    return encode


def _chatml(rename: Callable[[str], str] | None) -> Encoder:
    """The layout that the model was trained on; `start_index` is that of the target's turn."""

    def part(audio: Audio) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "audio", "audio_url": rename(audio.path) if rename else audio.path}
        if audio.offset is not None:
            made["offset"] = audio.offset
        if audio.duration is not None:
            made["duration"] = audio.duration
        return made

    def encode(record: Record, origin: str) -> bytes:
        messages: list[dict[str, Any]] = []
        if record.system is not None:
            messages.append({"role": "system", "content": record.system})
        if record.scene is not None:
            messages.append({"role": "scene", "content": record.scene})
        for spoken in record.references:
            assert spoken.audio is not None, "readers refuse a reference without audio"
            messages.append({"role": "user", "content": spoken.text})
            messages.append({"role": "assistant", "content": [part(spoken.audio)]})
        # What follows the first words of a request is the text, even if it has such words in it itself.
        text = record.target.text
        messages.append({"role": "user", "content": f"{REQUEST}{text}" if REQUEST in text else text})
        if record.target.audio is not None:
            said = {"type": "text", "text": record.target.text}
            messages.append({"role": "assistant", "content": [said, part(record.target.audio)]})
        sample: dict[str, Any] = {"id": record.id, "messages": messages, "start_index": len(messages) - 1}
        if record.speaker:
            sample["speaker"] = record.speaker
        sample["origin"] = origin
        extra = record.extra or {}
        if clash := sorted(set(extra) & {*sample, "speaker", "audios"}):
            raise ValueError(f"`extra` has the fields {', '.join(clash)}, which ChatML uses itself")
        return _plain(sample | extra)

    return encode


_ENCODERS: dict[str, Callable[[Callable[[str], str] | None], Encoder]] = {"canonical": _canonical, "chatml": _chatml}


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
