"""The one text clean-up: training text and text to be spoken go through the same function.

It is what the model's makers do to a text before it is spoken (`examples/generation.py` of boson-ai/higgs-audio):
punctuation of full width to ASCII, brackets to spaces, temperatures in words, `[laugh]` and its like to the tokens of
sound events, white space, a final stop. Before that comes what makes texts that look alike be alike: NFC, no invisible
characters, and what `TextJob` says about Arabic. Every change is counted.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from higgsc.catalog.codec import SPECIAL_TOKENS
from higgsc.contract.jobs import TextJob

DEFAULT_TEXT = TextJob()

SOUND_EVENTS: Mapping[str, str] = MappingProxyType(
    {
        "[laugh]": "<SE>[Laughter]</SE>",
        "[humming start]": "<SE_s>[Humming]</SE_s>",
        "[humming end]": "<SE_e>[Humming]</SE_e>",
        "[music start]": "<SE_s>[Music]</SE_s>",
        "[music end]": "<SE_e>[Music]</SE_e>",
        "[music]": "<SE>[Music]</SE>",
        "[sing start]": "<SE_s>[Singing]</SE_s>",
        "[sing end]": "<SE_e>[Singing]</SE_e>",
        "[applause]": "<SE>[Applause]</SE>",
        "[cheering]": "<SE>[Cheering]</SE>",
        "[cough]": "<SE>[Cough]</SE>",
    }
)
"""Tags that people write, and the tokens that the model was trained with in their place."""

_PUNCTUATION = str.maketrans(
    {
        "，": ", ", "。": ".", "：": ":", "；": ";", "？": "?", "！": "!", "（": "(", "）": ")", "【": "[", "】": "]",
        "《": "<", "》": ">", "“": '"', "”": '"', "‘": "'", "’": "'", "、": ",", "—": "-", "…": "...", "·": ".",
        "「": '"', "」": '"', "『": '"', "』": '"',
    }
)  # fmt: skip
_FULL_WIDTH = re.compile("[，。：；？！（）【】《》“”‘’、—…·「」『』]")
_BRACKETS = re.compile(r"[()]")
_DEGREES = re.compile("°([FC])")
_EVENT = re.compile("|".join(re.escape(tag) for tag in SOUND_EVENTS))
_CONTROL = re.compile("|".join([*map(re.escape, SPECIAL_TOKENS), r"<\|reserved_special_token_\d+\|>"]))
_ENDINGS = (".", "!", "?", ",", ";", '"', "'", "</SE_e>", "</SE>", "؟", "،", "؛", "۔", "।")
"""What a text may end with; the makers' list, and the same marks of Arabic, Urdu and Hindi."""

_PRESENTATION = re.compile("[\ufb50-\ufd3d\ufd40-\ufdff\ufe70-\ufefc]")
_TATWEEL = re.compile("\u0640")
_DIACRITICS = re.compile(
    "[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff]"
)
_ARABIC_DIGITS = re.compile("[\u0660-\u0669\u06f0-\u06f9\u066b\u066c]")
_TO_WESTERN = {
    **{0x0660 + digit: str(digit) for digit in range(10)},
    **{0x06F0 + digit: str(digit) for digit in range(10)},
    0x066B: ".",
    0x066C: ",",
}
_WESTERN_DIGITS = re.compile("[0-9]")
_TO_ARABIC = {ord("0") + digit: chr(0x0660 + digit) for digit in range(10)}
_ZERO_WIDTH_JOINERS = "\u200c\u200d"
"""Format characters that carry spelling (Persian, Urdu, Indic scripts), so they are text and are kept."""
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_text(text: str, options: TextJob = DEFAULT_TEXT, counts: Counter[str] | None = None) -> str:
    """Normalise a transcript or a text to be spoken.

    Args:
        text: As people write it.
        options: What to do about digits, vowel marks and the like.
        counts: Gets the number of changes of each kind, such as `tatweel` or `full-width punctuation`.

    Raises:
        ValueError: Nothing is left to say; or the text holds half of a surrogate pair, or a control token of the
            model such as `<|eot_id|>`, which is never to be read as one.
    """
    counts = Counter() if counts is None else counts
    written = text
    text = _compose(_visible(text, counts), counts)
    text = _arabic(text, options, counts)
    text = _sub(
        _FULL_WIDTH, lambda found: found.group().translate(_PUNCTUATION), text, "full-width punctuation", counts
    )
    text = _sub(_BRACKETS, " ", text, "brackets", counts)
    text = _sub(
        _DEGREES,
        lambda found: " degrees Fahrenheit" if found.group(1) == "F" else " degrees Celsius",
        text,
        "temperatures",
        counts,
    )
    # After all that could put one together out of other characters, before ours are put in.
    if found := _CONTROL.search(text):
        raise ValueError(f"the text holds the control token {found.group()}")
    if not any(unicodedata.category(character)[0] in "LN" for character in text):
        raise ValueError(f"nothing to say in the text {written.strip()!r}" if text.strip() else "the text is empty")
    text = _sub(_EVENT, lambda tag: SOUND_EVENTS[tag.group()], text, "sound events", counts)
    lines = "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())
    if lines != text:
        counts["white space"] += 1
    if lines.endswith(_ENDINGS):
        return lines
    counts["final stop"] += 1
    return f"{lines}."


def _visible(text: str, counts: Counter[str]) -> str:
    """Without control and format characters; white space of all kinds is a space, except for the ends of lines."""
    if text.isprintable():
        return text
    kept = []
    for character in text.replace("\r\n", "\n"):
        category = unicodedata.category(character)
        if category == "Cs":
            raise ValueError(f"the text holds half of a surrogate pair (U+{ord(character):04X})")
        if character.isspace():
            kept.append("\n" if character == "\n" else " ")
        elif character in _BIDI:
            counts["bidi controls"] += 1
        elif category in ("Cc", "Cf") and character not in _ZERO_WIDTH_JOINERS:
            counts["invisible characters"] += 1
        else:
            kept.append(character)
    return "".join(kept)


def _compose(text: str, counts: Counter[str]) -> str:
    if unicodedata.is_normalized("NFC", text):
        return text
    counts["NFC"] += 1
    return unicodedata.normalize("NFC", text)


def _arabic(text: str, options: TextJob, counts: Counter[str]) -> str:
    if options.presentation_forms == "compose":
        text = _sub(
            _PRESENTATION,
            lambda found: unicodedata.normalize("NFKC", found.group()),
            text,
            "presentation forms",
            counts,
        )
    if options.tatweel == "remove":
        text = _sub(_TATWEEL, "", text, "tatweel", counts)
    if options.diacritics == "remove":
        text = _sub(_DIACRITICS, "", text, "diacritics", counts)
    if options.digits == "western":
        text = _sub(_ARABIC_DIGITS, lambda found: _TO_WESTERN[ord(found.group())], text, "digits", counts)
    elif options.digits == "arabic":
        text = _sub(_WESTERN_DIGITS, lambda found: _TO_ARABIC[ord(found.group())], text, "digits", counts)
    # Letters that were apart can compose now.
    return unicodedata.normalize("NFC", text)


def _sub(pattern: re.Pattern[str], by: object, text: str, kind: str, counts: Counter[str]) -> str:
    changed, number = pattern.subn(by, text)  # type: ignore[call-overload]
    if number:
        counts[kind] += number
    return str(changed)
