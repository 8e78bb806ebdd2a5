"""Long texts in pieces: nothing lost, nothing longer than it may be, whatever the script."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgsc.deploy.chunks import chunks


@pytest.mark.parametrize(
    "text,limit,expected",
    [
        ("Hello there. How are you?", 30, ["Hello there. How are you?"]),
        ("Hello there. How are you?", 20, ["Hello there.", "How are you?"]),
        ('He said: "Stop!" Then he left.', 20, ['He said: "Stop!"', "Then he left."]),
        ("Pi is 3.14159, says Dr. Smith. Really?", 31, ["Pi is 3.14159, says Dr. Smith.", "Really?"]),
        ("كيف حالك؟ أنا بخير.", 12, ["كيف حالك؟", "أنا بخير."]),
        ("أنا بخير، والحمد لله؛ نعم يا أخي", 14, ["أنا بخير،", "والحمد لله؛", "نعم يا أخي"]),
        ("今日は。元気ですか？はい！", 8, ["今日は。", "元気ですか？", "はい！"]),
        ("one two three four", 9, ["one two", "three", "four"]),
        ("hey [humming start] la", 16, ["hey", "[humming start]", "la"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("One.\n\nTwo.", 30, ["One.", "Two."]),
        ("One. ...", 4, ["One...."]),
        ("...", 10, ["..."]),
        ("فقرة.\n\nــــــ\n\nفقرة.", 50, ["فقرة.ــــــ", "فقرة."]),
        ("一二三四五六。好。", 5, ["一二三四五", "六。好。"]),
        ("一二三四五六。yes。", 8, ["一二三四五六。", "yes。"]),
        (" \n ", 10, []),
    ],
)
def test_pieces(text: str, limit: int, expected: list[str]) -> None:
    assert chunks(text, limit) == expected


@given(st.text(alphabet="ab مـ.,!?؟،。\n[]'\"D", max_size=300), st.integers(1, 40))
def test_nothing_is_lost_and_only_marks_go_beyond_the_limit(text: str, limit: int) -> None:
    pieces = chunks(text, limit)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for piece in pieces:
        assert piece.strip()
        letters = [index for index, character in enumerate(piece) if character.isalnum() and character != "ـ"]
        assert not letters or letters[-1] - letters[0] < limit


@pytest.mark.parametrize(
    "text", ["A. " * 20_000, "." * 50_000 + "x", "," * 50_000 + "x", "\n " * 25_000, "[a " * 17_000]
)
def test_hostile_texts_take_no_longer_than_plain_ones(text: str) -> None:
    start = time.perf_counter()
    chunks(text)
    assert time.perf_counter() - start < 3
