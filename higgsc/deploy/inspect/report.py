"""What a check of a checkpoint or an adapter found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import StepError


@dataclass(slots=True)
class Report:
    """What was found; all is well if there are no problems."""

    path: Path
    problems: list[StepError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing, and not wrong."""
    compared_with: str | None = None
    """Where the names and shapes come from that its own were compared with."""
    tensors: int = 0
    """How many were read."""

    def add(self, problem: StepError) -> None:
        """Keep a problem; one file that is missing, or one text, is told once."""
        place = problem.path
        if place is not None and not Path(place).exists() and any(place == known.path for known in self.problems):
            return
        if str(problem) not in map(str, self.problems):
            self.problems.append(problem)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        problems = [
            {
                "path": None if problem.path is None else str(problem.path),
                "message": problem.message,
                "help": problem.help,
            }
            for problem in self.problems
        ]
        return {
            "path": str(self.path),
            "whole": not problems,
            "problems": problems,
            "notes": self.notes,
            "compared_with": self.compared_with,
            "tensors": self.tensors,
        }
