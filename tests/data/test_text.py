"""The text clean-up: what the model's makers do, Arabic, counts, and nothing that poses as a control token."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgsc.catalog.codec import SPECIAL_TOKENS
from higgsc.contract.jobs import TextJob
from higgsc.data.text import SOUND_EVENTS, clean_text


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("  مرحبا\t  بك!  ", "مرحبا بك!"),
        ("one\r\n\n  two ", "one\ntwo."),
        ("صَبَاحُ الْخَيْرْ، كَيْفَ حَالُكَ؟", "صَبَاحُ الْخَيْرْ، كَيْفَ حَالُكَ؟"),
        ("\u202bمرحبا\u202c \u200fبك\u200e", "مرحبا بك."),
        ("\ufeffa\u200bb\u00adc", "abc."),
        ("a\x00b\x07c\x7f", "abc."),
        ("a\u00a0\u2003b\u2028c", "a b c."),
        ("e\u0301", "é."),
        ("\u0627\u0653", "\u0622."),
        ("\u0627\u200b\u0653", "\u0622."),
        ("می\u200cخواهم", "می\u200cخواهم."),
        ("الساعة ١٢:٣٠!", "الساعة ١٢:٣٠!"),
        ("你好，世界。", "你好, 世界."),
        ("它（大约）20°C，或 68°F", "它 大约 20 degrees Celsius, 或 68 degrees Fahrenheit."),
        ("“so” he said—well…", '"so" he said-well...'),
        ("[laugh] no [cough]", "<SE>[Laughter]</SE> no <SE>[Cough]</SE>"),
        ("【music】 here", "<SE>[Music]</SE> here."),
        ("[music start] la", "<SE_s>[Music]</SE_s> la."),
        ("محمـــد", "محمد."),
        ("\ufee3\ufeae\ufea3\ufe92\ufe8e", "مرحبا."),
        ("النبي ﷺ", "النبي صلى الله عليه وسلم."),
    ],
)
def test_examples(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    "options, text, cleaned",
    [
        ({"digits": "western"}, "١٢٫٥ و ۳۴", "12.5 و 34."),
        ({"digits": "arabic"}, "12 و ٣", "١٢ و ٣."),
        ({"diacritics": "remove"}, "صَبَاحُ الْخَيْرِ أٱآ", "صباح الخير أٱآ."),
        ({"tatweel": "keep"}, "محمـد", "محمـد."),
        ({"presentation_forms": "keep"}, "\ufee3\ufeae", "\ufee3\ufeae."),
    ],
)
def test_options(options: dict[str, str], text: str, cleaned: str) -> None:
    assert clean_text(text, TextJob(**options)) == cleaned
    assert clean_text(text) != cleaned


def test_every_change_is_counted_and_no_change_is_not() -> None:
    counts: Counter[str] = Counter()
    assert clean_text("لا تغيير هنا.", counts=counts) == "لا تغيير هنا."
    assert not counts
    clean_text("محـــمَد\u200f ١٢\u200b （x） e\u0301 [cough]，", TextJob(digits="western", diacritics="remove"), counts)
    clean_text("five °F", counts=counts)
    assert counts == {
        "tatweel": 3,
        "diacritics": 1,
        "digits": 2,
        "bidi controls": 1,
        "invisible characters": 1,
        "NFC": 1,
        "full-width punctuation": 3,
        "brackets": 2,
        "temperatures": 1,
        "sound events": 1,
        "white space": 2,
        "final stop": 1,
    }


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "the text is empty"),
        (" \n\u200f", "the text is empty"),
        ("…?!", "nothing to say in the text '…\\?!'"),
        ("a\ud800b", r"half of a surrogate pair \(U\+D800\)"),
        ("x <|eot_id|>", r"holds the control token <\|eot_id\|>"),
        ("x <|eot\u200b_id|>", r"holds the control token <\|eot_id\|>"),
        ("x 《|eot_id|》", r"holds the control token <\|eot_id\|>"),
        ("x <|reserved_special_token_77|>", r"holds the control token"),
        ("x 《SE》", "holds the control token <SE>"),
    ],
)
def test_what_cannot_be_spoken_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        clean_text(text)


@given(
    st.text(st.characters() | st.sampled_from("ـ\u064b\u200f١5（《》[]()|_\n\u0653ﻣ﷽") | st.sampled_from("<|eot_id|>")),
    st.builds(
        TextJob,
        digits=st.sampled_from(["keep", "western", "arabic"]),
        diacritics=st.sampled_from(["keep", "remove"]),
    ),
)
def test_cleaning_twice_changes_nothing(text: str, options: TextJob) -> None:
    try:
        cleaned = clean_text(text, options)
    except ValueError:
        return
    if not any(event in cleaned for event in SOUND_EVENTS.values()):
        assert clean_text(cleaned, options) == cleaned
    assert cleaned.encode()
    assert cleaned == unicodedata.normalize("NFC", cleaned)
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()


@given(
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "\u200b", "a", "《", "》", "eot_id", "|", "("]), max_size=8)
)
def test_no_control_token_comes_through(parts: list[str]) -> None:
    try:
        cleaned = clean_text("".join(parts))
    except ValueError:
        return
    assert not any(token in cleaned for token in SPECIAL_TOKENS)
