"""Long texts in pieces that the model can say in one go: cut at ends of sentences, Latin, Arabic or Chinese."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

CHUNK_CHARACTERS = 200
"""Longest piece: some 15 s of speech, about the longest that the model was trained to say at once."""

MAX_CHARACTERS = 50_000
"""Longest text that is spoken in one go, about an hour."""

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?:(?<![.!?…؟۔।])[.!?…؟۔।]+[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』”’）]*|\n)\s*")
"""What ends a sentence, with the quotes that close after it; a point between digits does not.

It starts at the first mark of a run, so that a page of full stops takes no longer than a page of words."""
_CLAUSE = re.compile(r"(?:(?<![,;:،؛—–])[,;:،؛—–]+(?=\s|$)|[，；：、])\s*")
_SPACE = re.compile(r"\s+(?![\w ]{0,20}\])")
"""Between words, but not within a tag such as `[humming start]`."""
_LEVELS = (_SENTENCE, _CLAUSE, _SPACE)

_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z][a-z]{0,2}|[a-z](?:\.[a-z])+|vs|etc)\.$")
"""`Dr.`, `St.`, `A.`, `e.g.`: rather two sentences together than one cut in half."""


def chunks(text: str, limit: int = CHUNK_CHARACTERS) -> list[str]:
    """Cut a text into pieces to be said one after the other; nothing is left out but white space between them.

    As many sentences as fit go together; paragraphs are kept apart. A sentence that is too long is cut at a comma,
    then between words, and only a word that is too long by itself in the middle.

    Args:
        text: As people write it, before `clean_text`.
        limit: Longest piece, at least 1; a piece may only be longer by marks that cannot be spoken alone.
    """
    pieces: list[str] = []
    waiting = ""
    for paragraph in _PARAGRAPH.split(text):
        for piece in _cut(paragraph, limit, 0):
            if _sayable(piece):
                pieces.append(waiting + piece)
                waiting = ""
            elif pieces:
                pieces[-1] += piece
            else:
                waiting += piece
    return pieces + ([waiting] if waiting else [])


def _sayable(piece: str) -> bool:
    """Whether `clean_text` leaves a letter or a digit, whatever its options: marks and lines of tatweel are none."""
    plain = unicodedata.normalize("NFKC", piece).replace("\u0640", "")
    return any(unicodedata.category(character)[0] in "LN" for character in plain)


def _cut(text: str, limit: int, level: int) -> Iterator[str]:
    if level == len(_LEVELS):
        yield from (text[at : at + limit] for at in range(0, len(text), limit))
        return
    room = ""
    for part in _parts(text, _LEVELS[level]):
        if len((room + part).strip()) <= limit:
            room += part
            continue
        if room.strip():
            yield room.strip()
        room = part
        if len(part.strip()) > limit:
            # The last of its pieces may still take what follows.
            *whole, room = _cut(part.strip(), limit, level + 1)
            yield from whole
            room += part[len(part.rstrip()) :]
    if room.strip():
        yield room.strip()


def _parts(text: str, end: re.Pattern[str]) -> list[str]:
    """A text cut after each match that ends something; the parts joined are the text."""
    parts: list[str] = []
    start = 0
    for found in end.finditer(text):
        before = text[max(start, found.start() - 8) : found.start() + 1]
        if end is not _SENTENCE or not _ABBREVIATION.search(before):
            parts.append(text[start : found.end()])
            start = found.end()
    return [*parts, text[start:]] if text[start:] else parts
