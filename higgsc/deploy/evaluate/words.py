"""Word and character error rates, after a normalisation that forgives what is not heard.

Vowel marks, the carrier of a hamza on alef, ya without dots, ta marbuta, the shape of digits and punctuation are
matters of spelling: recognisers and transcripts differ in them where the speech is the same. Whisper's own normaliser
treats vowel marks as spaces and breaks Arabic words apart. Numbers in words and in digits stay different: normalising
them takes grammar (`data.text` and transcripts in words avoid it).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_EVENT = re.compile(r"</?SE(?:_[se])?>|(?<=>)\[[A-Za-z ]+\](?=</SE)")
_LETTERS = str.maketrans(
    {
        "أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي", "ی": "ي", "ې": "ي", "ة": "ه", "ۀ": "ه", "ہ": "ه",
        "ک": "ك", "ـ": None,
    }
)  # fmt: skip
"""Of Arabic: what is written in several ways and said in one. Persian and Urdu forms count as their Arabic ones."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Error rates of a set of transcripts: substitutions, deletions and insertions over the length of the texts."""

    words: float
    characters: float


def normalise(text: str) -> str:
    """What is compared of a text: letters and digits in words, with single spaces; empty if nothing of it is heard.

    Args:
        text: A prompt's text or a transcript, in any language.
    """
    text = _EVENT.sub(" ", text)
    # Composed first, so that an alef with a hamza above is one letter and not an alef with a mark to be dropped.
    text = unicodedata.normalize("NFKC", text).translate(_LETTERS).casefold()
    kept = []
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Nd":
            kept.append(str(unicodedata.decimal(character)))
        elif kind[0] in "LN":
            kept.append(character)
        elif character in "'’" or (kind in ("Mn", "Cf") and _is_arabic_or_invisible(character)):
            continue  # vowel marks and apostrophes stand inside a word
        elif kind[0] == "M":
            kept.append(character)  # of scripts whose marks are letters, such as Devanagari
        else:
            kept.append(" ")
    return " ".join("".join(kept).split())


def _is_arabic_or_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\u0600" <= character <= "\u08ff"


def error_rates(texts: Sequence[str], transcripts: Sequence[str]) -> Errors | None:
    """Error rates over all pairs together, by jiwer, after `normalise`.

    Texts of which nothing is heard, such as a laugh, are left out; None if no other is there.

    Args:
        texts: What was to be said.
        transcripts: What was understood, one each.
    """
    pairs = [(normalise(text), normalise(transcript)) for text, transcript in zip(texts, transcripts, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    if not pairs:
        return None
    import jiwer  # of the extra `eval`; only needed where a recogniser listens

    wanted, understood = ([pair[side] for pair in pairs] for side in (0, 1))
    return Errors(
        words=float(jiwer.process_words(wanted, understood).wer),
        characters=float(jiwer.process_characters(wanted, understood).cer),
    )
