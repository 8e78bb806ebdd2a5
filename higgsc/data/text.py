"""The one text clean-up: training text and text to be spoken go through the same function."""

from __future__ import annotations

import unicodedata

_ZERO_WIDTH_JOINERS = "\u200c\u200d"
"""Format characters that carry spelling (Persian, Urdu, Indic scripts), so they are text and are kept."""


def clean_text(text: str) -> str:
    """Normalise a transcript or a text to be spoken.

    Composes Unicode to NFC, drops control and format characters (among them the marks that steer
    bidirectional display, byte order marks and zero-width spaces), makes each run of white space one space
    and strips the ends. Letters, vowel marks, digits and punctuation stay as they are.

    Raises:
        ValueError: Nothing is left to say, or the text holds half of a surrogate pair.
    """
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs":
            raise ValueError(f"the text holds half of a surrogate pair (U+{ord(character):04X})")
        if character.isspace():
            kept.append(" ")
        elif category not in ("Cc", "Cf") or character in _ZERO_WIDTH_JOINERS:
            kept.append(character)
    cleaned = " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
    if not any(unicodedata.category(character)[0] in "LN" for character in cleaned):
        raise ValueError("the text is empty" if not cleaned else f"nothing to say in the text {cleaned!r}")
    return cleaned
