"""Single-speaker recordings to pairs of reference and target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from higgsc.data.formats.reading import Read
from higgsc.data.records import Record, Rejected

NO_SPEAKER = (
    "no speaker is named, so there is no telling whose voice could be the reference; where all recordings are of one "
    "voice, say so with `speaker:` (--speaker)"
)


def pair_within_speakers(reads: Iterable[Read], *, source: Path, seed: int) -> Iterator[Read]:
    """Give each record without a reference another utterance of its speaker as one.

    A speaker's utterances stand in a circle, ordered by a hash of their ids and the seed, and each takes the next one
    that is another recording. So each is a reference about as often as a target, none is its own, and the choice
    depends on neither order nor machine. Records that have references stay as they are.

    Args:
        reads: Of one data file; all of it is held in memory.
        source: The data file, for what is rejected.
        seed: Another seed, other pairs.

    Yields:
        As many as came in, in their order. A record without a speaker, or whose speaker has no other recording, is
        rejected.
    """
    held = list(reads)
    circles: dict[str, list[int]] = {}
    for number, (_, read) in enumerate(held):
        if isinstance(read, Record) and not read.references and read.speaker and read.target.audio is not None:
            circles.setdefault(read.speaker, []).append(number)
    chosen: dict[int, int] = {}
    for circle in circles.values():
        circle.sort(key=lambda number: (_drawn(held[number][1].id, seed), number))
        for place, number in enumerate(circle):
            if (other := _next(held, circle, place)) is not None:
                chosen[number] = other
    for number, (line, read) in enumerate(held):
        if isinstance(read, Rejected) or read.references or read.target.audio is None:
            yield line, read
        elif number in chosen:
            other_read = held[chosen[number]][1]
            assert isinstance(other_read, Record)
            yield line, msgspec.structs.replace(read, references=(other_read.target,))
        else:
            reason = f"no other recording of {read.speaker!r} to pair it with" if read.speaker else NO_SPEAKER
            yield line, Rejected(id=read.id, source=source, line=line, reason=reason)


def _next(held: list[Read], circle: list[int], place: int) -> int | None:
    """The next in the circle that is another recording; two rows may name the same one."""
    own = _audio(held[circle[place]][1])
    for step in range(1, len(circle)):
        other = circle[(place + step) % len(circle)]
        if _audio(held[other][1]) != own:
            return other
    return None


def _audio(read: Record | Rejected) -> tuple[str, float | None] | None:
    assert isinstance(read, Record)
    audio = read.target.audio
    return None if audio is None else (audio.path, audio.offset)


def _drawn(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
