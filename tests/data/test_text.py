"""The text clean-up."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgsc.data.text import clean_text


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("  مرحبا\t\n بك  ", "مرحبا بك"),
        ("صَبَاحُ الْخَيْرْ، كَيْفَ حَالُكَ؟", "صَبَاحُ الْخَيْرْ، كَيْفَ حَالُكَ؟"),
        ("\u202bمرحبا\u202c \u200fبك\u200e", "مرحبا بك"),
        ("\ufeffa\u200bb\u00adc", "abc"),
        ("a\x00b\x07c\x7f", "abc"),
        ("a\u00a0\u2003b\u2028c", "a b c"),
        ("e\u0301", "é"),
        ("\u0627\u0653", "\u0622"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("الساعة ١٢:٣٠!", "الساعة ١٢:٣٠!"),
    ],
)
def test_examples(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "the text is empty"),
        (" \n\u200f", "the text is empty"),
        ("…?!", "nothing to say in the text '…\\?!'"),
        ("a\ud800b", r"half of a surrogate pair \(U\+D800\)"),
    ],
)
def test_what_cannot_be_spoken_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        clean_text(text)


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    try:
        cleaned = clean_text(text)
    except ValueError:
        return
    assert clean_text(cleaned) == cleaned
    assert cleaned.encode()
    assert cleaned == unicodedata.normalize("NFC", cleaned)
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()
