"""What was started, and how it ended: `<run>/journal.json`.

A scheduler's jobs go on without us, so the journal of a submitted run says what was handed over, not how far it came:
that is asked of the scheduler and read from the run's folder (`launch/status.py`). A run on this machine keeps its
journal up to date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import write_atomically

State = Literal[
    "waiting", "submitting", "submitted", "running", "done", "skipped", "failed", "interrupted", "cancelled"
]
"""`submitting`: the scheduler may have heard of it. `submitted`: its job id is known."""

JOURNAL = "journal.json"


class JournalStep(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State = "waiting"
    reason: str | None = None
    """Why it ran again, was skipped or failed."""
    attempt: int = 0
    """How often the step has been handed to a scheduler."""
    key: str | None = None
    """Idempotency key of the attempt."""
    job: str | None = None
    """The scheduler's id; the runner's process id on this machine."""
    submitted: str | None = None
    started: str | None = None
    ended: str | None = None
    exit_code: int | None = None
    log: str | None = None
    """Relative to the project root."""


class Journal(BaseModel):
    """The state of every step of a run; written anew at each change."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    journal_schema: Literal["higgsc.journal/v1"] = Field(default="higgsc.journal/v1", alias="schema")
    plan: str
    build: str
    """Relative to the project root."""
    root: str
    """The project root, relative to the run's folder."""
    digest: str
    """Of the files of the build that jobs read."""
    scheduler: str
    submitted: str
    steps: dict[str, JournalStep]

    def save(self, run: Path) -> None:
        """Write the journal; durable before it returns."""
        write_atomically(run / JOURNAL, self.model_dump_json(indent=2, by_alias=True) + "\n")

    def record(self, run: Path, step: str, **changes: object) -> None:
        """Change the entry of a step and save the journal."""
        self.steps[step] = self.steps[step].model_copy(update=changes)
        self.save(run)

    @property
    def jobs(self) -> dict[str, str]:
        """Job ids by step."""
        return {name: step.job for name, step in self.steps.items() if step.job is not None}


def read_journal(run: Path) -> Journal | None:
    """The journal of a run, or None if nothing was started in it.

    Raises:
        StepError: The file is not a journal of this version (65).
    """
    path = run / JOURNAL
    if not path.is_file():
        return None
    try:
        return Journal.model_validate_json(path.read_text("utf-8"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StepError(
            f"not a journal of this version: {where}: {first['msg']}",
            path=path,
            help="remove the file if no job of this run is queued or running any more; receipts and checkpoints stay",
        ) from error


def digest_of(lock: str, path: Path) -> str:
    """What identifies a build to the jobs that carry it out: its files without those that only people read.

    Args:
        lock: The text of `higgsc.lock`.
        path: Where it lies, for messages.

    Raises:
        StepError: It is not a lock file.
    """
    try:
        outputs: Mapping[str, str] = json.loads(lock)["outputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise StepError("not a lock file of higgsc", code=ExitCode.BAD_DATA, path=path, help="build again") from error
    read = sorted(f"{name} {digest}" for name, digest in outputs.items() if name not in ("report.md", "resolved.yaml"))
    return sha256("\n".join(read).encode()).hexdigest()


def now() -> str:
    """The time as ISO 8601 with offset, to the second."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
