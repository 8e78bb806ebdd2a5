"""How a step ends: exit codes, the error that a user can act on, and the result that becomes a receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Exit status of every `higgsc` command and step (values above 64 follow sysexits.h)."""

    DONE = 0
    DIAGNOSTICS = 1
    USAGE = 2
    BAD_DATA = 65
    MISSING_INPUT = 66
    SCHEDULER_UNREACHABLE = 69
    INTERNAL = 70
    OUT_OF_MEMORY = 71
    IO = 74
    INTERRUPTED = 75


class StepError(Exception):
    """A step cannot go on, for a reason its user can do something about.

    Args:
        message: What is wrong, lowercase, without a final period.
        code: The exit status that the process ends with.
        path: The file at fault, if one is.
        line: 1-based line in `path`.
        help: What to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        code: ExitCode = ExitCode.BAD_DATA,
        path: str | Path | None = None,
        line: int | None = None,
        help: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.path = path
        self.line = line
        self.help = help

    def __str__(self) -> str:
        place = "" if self.path is None else f"{self.path}: " if self.line is None else f"{self.path}:{self.line}: "
        return f"{place}{self.message}" + (f"\n  = help: {self.help}" if self.help else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a finished step read and wrote; becomes its receipt."""

    summary: str
    """One line for people, such as `32 samples encoded, 0 rejected`."""
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    figures: Mapping[str, float | int | str] = field(default_factory=dict)
    """Numbers worth keeping, such as `validation/audio_loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A step was asked to stop, saved its work and ended: started again, it goes on from there."""

    done: int
    """Units that need not be done again."""
    total: int
    unit: str
    """What is counted: `samples`, `steps`."""
