"""How far a step came: `<run>/state/<step>`, one line for shells, such as `interrupted 120 300`.

Exit codes do not survive torchrun and srun (a worker's 75 comes out as 1 or 143), so an interrupted step exits with 0
and says here what happened. The batch script reads it to decide whether to requeue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from higgsc.contract.outcome import StepError
from higgsc.contract.receipts import write_atomically

Phase = Literal["running", "interrupted", "done"]


@dataclass(frozen=True, slots=True)
class StepState:
    """What the file of a step says."""

    phase: Phase
    done: int
    """Units that need not be done again: optimizer steps in a checkpoint, samples in the store."""
    total: int


def state_path(run: Path, step: str) -> Path:
    """Where the state of a step lies below its run's folder."""
    return run / "state" / step


def write_state(run: Path, step: str, phase: Phase, done: int, total: int) -> None:
    """Record how far a step came; durable before it returns."""
    write_atomically(state_path(run, step), f"{phase} {done} {total}\n")


def read_state(run: Path, step: str) -> StepState | None:
    """The state of a step, or None if it has not started in this run.

    Raises:
        StepError: If the file does not hold a state.
    """
    path = state_path(run, step)
    if not path.is_file():
        return None
    words = path.read_text("utf-8").split()
    if len(words) != 3 or words[0] not in get_args(Phase) or not (words[1] + words[2]).isdecimal():
        raise StepError("not the state of a step", path=path, help="remove it to start the step from the beginning")
    return StepState(words[0], int(words[1]), int(words[2]))  # type: ignore[arg-type]
