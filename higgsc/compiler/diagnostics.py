"""What the compiler has to say to a user: one frozen record for each problem, collected by a sink."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from higgsc.compiler.position import Span

Severity = Literal["error", "warning"]


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
        from higgsc.compiler.codes import CODES

        return CODES[self.code].severity


class Sink:
    """Collects the diagnostics of a compilation."""

    def __init__(self) -> None:
        self._found: list[Diagnostic] = []
        self.error_count = 0

    def add(self, diagnostic: Diagnostic) -> None:
        if diagnostic in self._found:
            return  # another point of a sweep has the same problem
        self._found.append(diagnostic)
        if diagnostic.severity == "error":
            self.error_count += 1

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything found, in the order of the files and of the places inside them."""
        order: dict[int, int] = {}
        for diagnostic in self._found:
            order.setdefault(id(diagnostic.primary.span.source), len(order))
        return tuple(
            sorted(self._found, key=lambda d: (order[id(d.primary.span.source)], d.primary.span.start, d.code))
        )


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like `word`, or None if none looks much like it."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean …?`, or None."""
    match = closest(word, known)
    return f"did you mean `{match}`?" if match else None
