"""One at a time: a lock beside what is written."""

from __future__ import annotations

from contextlib import AbstractContextManager
from math import inf
from pathlib import Path

from higgsc.contract.lock import Owner, held
from higgsc.contract.outcome import ExitCode, StepError


def exclusive(path: Path, *, wait: bool = False) -> AbstractContextManager[None]:
    """Keep others from writing `path` while the block works.

    Args:
        path: What is written; the lock is the file `.<name>.lock` beside it.
        wait: Wait for the other one instead of refusing.

    Raises:
        StepError: Another process holds it; says which (74).
    """

    def refusal(owner: Owner) -> StepError:
        help_ = "wait for it, or name another folder"
        return StepError(f"{owner.process} is writing this", code=ExitCode.IO, path=path, help=help_)

    return held(
        path.with_name(f".{path.name}.lock"), "prepare", refusal=refusal, patience=lambda _: inf if wait else 0.0
    )
