"""What the compiler has to say to a user: one frozen record for each problem, collected by a sink."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache

from higgsc.compiler.codes import CODES, Severity
from higgsc.compiler.reading.position import Span, escaped
from higgsc.compiler.reading.redact import mask


@dataclass(frozen=True, slots=True)
class Label:
    """A place in a spec, and what is to be said about it."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text of a span: the fix that `help` proposes, when it is safe to apply unseen."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem: what is wrong, where, and the way out.

    `code` is registered in `codes.py`, which also says whether it is an error or a warning. Messages are lowercase
    and end without a period; `help` proposes a change, `notes` add facts, `fix` is that change for a machine.
    """

    code: str
    message: str
    primary: Label
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    fix: Edit | None = None

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity


class Sink:
    """Collects the diagnostics of a compilation."""

    def __init__(self) -> None:
        self._found: dict[Diagnostic, None] = {}
        self.error_count = 0

    def add(self, diagnostic: Diagnostic) -> None:
        diagnostic = _printable(diagnostic)
        if diagnostic in self._found:
            return  # another point of a sweep has the same problem
        if diagnostic.severity == "error":
            self.error_count += 1
            if self.error_count > MAX_ERRORS:
                return
        self._found[diagnostic] = None

    @property
    def full(self) -> bool:
        """Whether further errors would only be counted; who finds them at some expense can stop looking."""
        return self.error_count > MAX_ERRORS

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything found, in the order of the files and of the places inside them."""
        order: dict[int, int] = {}
        for diagnostic in self._found:
            order.setdefault(id(diagnostic.primary.span.source), len(order))
        found = sorted(self._found, key=lambda d: (order[id(d.primary.span.source)], d.primary.span.start, d.code))
        if self.full:
            note = f"there are more; only the first {MAX_ERRORS} errors are shown"
            found[-1] = replace(found[-1], notes=(*found[-1].notes, note))
        return tuple(found)


MAX_MESSAGE = 600
MAX_ERRORS = 100
"""Errors that are kept: a file that is wrong in ten thousand places is wrong in one way."""


def _printable(diagnostic: Diagnostic) -> Diagnostic:
    """The same with texts that fit on a line each, whatever they quote: no controls, no secrets, no end of words."""
    return replace(
        diagnostic,
        message=_clean(diagnostic.message),
        primary=replace(diagnostic.primary, text=_clean(diagnostic.primary.text)),
        secondary=tuple(replace(label, text=_clean(label.text)) for label in diagnostic.secondary),
        notes=tuple(_clean(note) for note in diagnostic.notes),
        help=_clean(diagnostic.help) if diagnostic.help is not None else None,
    )


def _clean(text: str) -> str:
    # Masked as a whole before it is cut: half a token would not be recognised.
    text = mask(text) if len(text) <= 10 * MAX_MESSAGE else mask(text[: 10 * MAX_MESSAGE])
    text = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
    return escaped(text)


@lru_cache(maxsize=4096)
def _closest(word: str, known: tuple[str, ...], cutoff: float) -> str | None:
    folded = {candidate.casefold().replace("-", "_"): candidate for candidate in reversed(known)}
    plain = word.strip().casefold().replace("-", "_")
    if plain in folded:
        return folded[plain]
    matches = get_close_matches(plain, list(folded), n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word that looks most like `word`, whatever its case, or None if none looks much like it."""
    return _closest(word, tuple(known), cutoff) if len(word) <= 100 else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean …?`, or None."""
    match = closest(word, known)
    return f"did you mean `{match}`?" if match else None
