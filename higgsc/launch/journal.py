"""What was started, and how it ended: `<run>/journal.json`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from higgsc.contract.receipts import write_atomically

State = Literal["waiting", "running", "done", "skipped", "failed", "interrupted"]


class JournalStep(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State = "waiting"
    reason: str | None = None
    """Why it ran again, was skipped or failed."""
    started: str | None = None
    ended: str | None = None
    exit_code: int | None = None
    log: str | None = None
    """Relative to the project root."""


class Journal(BaseModel):
    """The state of every step of a run; written anew at each change."""

    model_config = ConfigDict(extra="forbid")

    journal_schema: Literal["higgsc.journal/v1"] = Field(default="higgsc.journal/v1", serialization_alias="schema")
    plan: str
    build: str
    scheduler: str
    steps: dict[str, JournalStep]

    def record(self, run: Path, step: str, **changes: object) -> None:
        """Change the entry of a step and save the journal."""
        self.steps[step] = self.steps[step].model_copy(update=changes)
        write_atomically(run / "journal.json", self.model_dump_json(indent=2, by_alias=True) + "\n")


def now() -> str:
    """The time as ISO 8601 with offset, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
