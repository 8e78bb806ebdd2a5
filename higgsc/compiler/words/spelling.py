"""Whether a word is another one with a slip of the finger: only such words are replaced unseen."""

from __future__ import annotations

from collections.abc import Iterable


def typo_of(word: str, known: Iterable[str]) -> str | None:
    """The one known word that `word` misspells, or None.

    A slip is a letter too many, too few, wrong or swapped with its neighbour (two of them in a word of eight letters
    and more), or another case, or `-` for `_`. Digits are never slips: `fp16` is not `bf16`, nor `v1` `v2`; and of
    two words that are equally near neither is meant for certain.
    """
    plain = _plain(word)
    candidates = [
        candidate
        for candidate in known
        if _digits(word) == _digits(candidate) and _distance(plain, _plain(candidate)) <= (2 if len(plain) >= 8 else 1)
    ]
    exact = [candidate for candidate in candidates if _plain(candidate) == plain]
    found = exact or candidates
    return found[0] if len(found) == 1 and len(plain) > 2 else None


def _plain(word: str) -> str:
    return word.strip().casefold().replace("-", "_")


def _digits(word: str) -> list[str]:
    return [character for character in word if character.isdigit()]


def _distance(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours between two words; 3 if there are more than two."""
    if abs(len(one) - len(other)) > 2 or len(one) > 64:
        return 3
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(other, start=1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return min(rows[-1][-1], 3)
