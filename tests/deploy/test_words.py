"""Error rates of fixed texts: what counts as an error, and what is spelling."""

from __future__ import annotations

import pytest

pytest.importorskip("jiwer")

from higgsc.deploy.evaluate.words import error_rates, normalise


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("صَبَاحُ الْخَيْرْ، كَيْفَ حَالُكَ؟", "صباح الخير كيف حالك"),  # vowel marks, punctuation
        ("أحمد إلى آخر ٱلليل", "احمد الي اخر الليل"),  # alef with hamza, madda, wasla; ya without dots
        ("مدينة جميلة", "مدينه جميله"),  # ta marbuta
        ("الســلام", "السلام"),  # tatweel
        ("ﻼ ﷲ", "لا الله"),  # presentation forms
        ("سنة ٢٠٢٦", "سنه 2026"),
        ("سنة ۲۰۲۶", "سنه 2026"),  # digits of Persian
        ("کتاب علی", "كتاب علي"),  # letters of Persian that look the same
        ("\u202bمرحبا\u202c\u200f", "مرحبا"),
        ("أ\u0654", "ا"),  # composed and decomposed hamza
        ("Hello, World!", "hello world"),
        ("don’t", "DON'T"),
        ("Straße", "STRASSE"),
        ("<SE>[Laughter]</SE> hello <SE_s>[Music]</SE_s>", "hello"),
        ("a\n\tb  c", "a b c"),
    ],
)
def test_what_sounds_the_same_is_the_same(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
    assert error_rates([one], [other]).words == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [("كتب", "كتاب"), ("قلب", "كلب"), ("سأل", "سؤال"), ("résumé", "resume"), ("हिंदी", "हदी"), ("25", "٢٦")],
)
def test_what_sounds_different_stays_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_rates_are_over_all_words_and_not_means_of_rates() -> None:
    """Counted by hand: one substitution, one deletion and two insertions over 4 + 1 words."""
    texts = ["ذهب الولد إلى المدرسة", "نعم"]
    found = error_rates(texts, ["ذهب البنت المدرسة", "نعم نعم نعم"])
    assert found.words == pytest.approx((1 + 1 + 2) / 5)
    # Characters, spaces among them: الولد → البنت 3, " الي" 4, " نعم نعم" 8; over 20 + 3.
    assert found.characters == pytest.approx((3 + 4 + 8) / (len("ذهب الولد الي المدرسه") + 3))
    assert error_rates(texts, ["", ""]).words == 1
    assert error_rates(["نعم"], ["لا لا لا"]).words == 3


def test_a_text_of_which_nothing_is_heard_is_left_out() -> None:
    assert error_rates(["<SE>[Laughter]</SE>."], ["haha"]) is None
    assert error_rates(["<SE>[Laughter]</SE>.", "yes"], ["haha", "yes"]).words == 0
    assert error_rates([], []) is None
