"""What a message proposes: words for a person, and for `--fix` the text to put there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hint:
    """A way out."""

    help: str | None = None
    text: str | None = None
    """What to put in the value's place, when that is safe to do unseen."""
