"""Fields of a sample by any of their names, each with one way to be right and a reason where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from higgsc.data.records import Audio

Row = Mapping[str, Any]
"""One sample of a data file, as JSON has it."""

ID = ("id", "sample_id", "utt_id")
SPEAKER = ("speaker", "speaker_id", "speaker_name")
NO_TEXT = "is empty"


def pick(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """The name in use and the value of a field that may go by several names; the first name and None if it is absent.

    Raises:
        ValueError: Two of the names are in use with different values.
    """
    given = [(name, row[name]) for name in names if row.get(name) is not None]
    if not given:
        return names[0], None
    if any(value != given[0][1] for _, value in given):
        raise ValueError(f"{' and '.join(f'`{name}`' for name, _ in given)} are both given, and differ")
    return given[0]


def text(row: Row, names: tuple[str, ...], what: str) -> str:
    """A text that is there and says something.

    Raises:
        ValueError: It is missing, no string, blank, or holds half of a surrogate pair.
    """
    name, value = pick(row, names)
    if value is None:
        raise ValueError(f"no {what}: {' or '.join(f'`{known}`' for known in names)} is missing")
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is the {what}, a string, not {value!r:.60}")
    return said(value, what)


def said(value: str, what: str) -> str:
    """A text that can be written down and is not blank."""
    if not value.strip():
        raise ValueError(f"the {what} {NO_TEXT}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"the {what} holds half of a surrogate pair")
    return value


def printable(text: str) -> str:
    """One line that can be printed, whatever data the text quotes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def name_of(value: Any, what: str) -> str | None:
    """An id or a speaker; None where there is none.

    Raises:
        ValueError: It is neither one line of text nor a number.
    """
    if value is None or value == "":
        return None
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # Names go to logs and reports, a line each. Half a surrogate pair is not printable either.
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError(f"the {what} is one line of text or a number, not {value!r:.60}")
    return name


def audio(row: Row, names: tuple[str, ...], what: str, *, cut: bool = True) -> Audio | None:
    """The audio named by a field, None if it is absent; with `cut`, `offset` and `duration` beside it count."""
    name, value = pick(row, names)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` names the file of the {what}, it is not {value!r:.60}")
    if not cut:
        return Audio(value)
    return Audio(value, seconds(row, "offset"), seconds(row, "duration"))


def seconds(row: Row, key: str) -> float | None:
    """A number of seconds, None if it is absent."""
    value = row.get(key)
    if value is None:
        return None
    # An integer too large for a float is no length of audio either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"`{key}` is a number of seconds, not {value!r:.60}")
    if key == "duration" and not value > 0:
        raise ValueError(f"`duration` is {value}; it has to be above 0")
    return float(value)


def has(row: Row, names: tuple[str, ...]) -> str | None:
    """The first of the names that the row uses."""
    return next((name for name in names if row.get(name) is not None), None)


def rest(row: Row, *used: tuple[str, ...]) -> dict[str, Any] | None:
    """The fields that none of the names cover; None if there are none."""
    known = {name for names in used for name in names}
    return {key: value for key, value in row.items() if key not in known} or None
