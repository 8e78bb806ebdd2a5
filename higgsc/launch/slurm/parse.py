"""What Slurm 21 to 25 say of jobs: `squeue --json`, `scontrol show job`, `sacct`, in one form.

The JSON changed between versions: `job_state` is a word in 21.08 to 23.02 and a list of words from 23.11 on, and
numbers became `{"set": true, "infinite": false, "number": 7}` in 23.02.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from higgsc.launch.scheduler import JobPhase, JobStatus

PHASES: dict[str, JobPhase] = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_FED": "waiting",
    "REQUEUE_HOLD": "waiting",
    "RESV_DEL_HOLD": "waiting",
    "SPECIAL_EXIT": "waiting",
    "POWER_UP_NODE": "waiting",
    "RUNNING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "COMPLETING": "running",
    "COMPLETED": "done",
    "FAILED": "failed",
    "TIMEOUT": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "BOOT_FAIL": "failed",
    "LAUNCH_FAILED": "failed",
    "RECONFIG_FAIL": "failed",
    "DEADLINE": "failed",
    "PREEMPTED": "failed",
    "CANCELLED": "cancelled",
}
"""`man squeue`, job state codes. A word that is not here is `unknown`."""

_STRONGEST: tuple[JobPhase, ...] = ("waiting", "running", "cancelled", "failed", "done")
"""Of several words, the one that matters: `["COMPLETED", "COMPLETING"]` still runs, `["RUNNING", "REQUEUED"]` waits."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job, or tasks of an array."""

    id: str
    """As `sbatch` printed it: of an array, the id of the whole."""
    comment: str
    status: JobStatus
    tasks: tuple[int, ...] = ()
    """Which tasks of the array it is about; one row stands for all that have not started. Empty for other jobs."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The names it goes by in a journal: its id, and of an array `id_index` of each task."""
        return (self.id, *(f"{self.id}_{task}" for task in self.tasks))


def tasks_of(text: str) -> tuple[int, ...]:
    """The tasks in Slurm's notation: `7`, `0-3`, `1,4-8:2%2`; none in `N/A`."""
    found: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = match.groups()
            found += range(int(first), int(last or first) + 1, int(step or 1))
    return tuple(found)


def phase_of(words: list[str]) -> tuple[JobPhase, str]:
    """The phase that one or more state words stand for, and the word that says so."""
    known = {PHASES[word]: word for word in reversed(words) if word in PHASES}
    for phase in _STRONGEST:
        if phase in known:
            return phase, known[phase]
    return "unknown", "+".join(words) or "UNKNOWN"


def from_squeue(text: str) -> list[Job]:
    """The jobs in the output of `squeue --json`.

    Raises:
        ValueError: It is not in a form that we know.
        ConnectionError: Slurm reports errors in the document, and exits with 0.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("jobs"), list):
        raise ValueError("no list of jobs")
    if document.get("errors"):
        errors = [row for row in document["errors"] if isinstance(row, Mapping)]
        raise ConnectionError("; ".join(str(row.get("description") or row.get("error")) for row in errors))
    return [_from_json(row) for row in document["jobs"]]


def _from_json(row: Mapping[str, Any]) -> Job:
    words = row["job_state"]
    phase, word = phase_of([words] if isinstance(words, str) else [str(entry) for entry in words])
    start, end = _number(row.get("start_time")), _number(row.get("end_time"))
    reason = str(row.get("state_reason") or "")
    array, task = _number(row.get("array_job_id")), _number(row.get("array_task_id"))
    tasks = str(row.get("array_task_string") or "") if task is None else str(task)
    return Job(
        id=str(array or _number(row["job_id"])),
        comment=_text(row.get("comment")),
        status=JobStatus(
            phase=phase,
            word=word,
            reason=None if reason in ("", "None") else reason,
            expected_start=float(start) if phase == "waiting" and start else None,
            started=float(start) if phase != "waiting" and start else None,
            ended=float(end) if phase not in ("waiting", "running") and end else None,
            restarts=_number(row.get("restart_cnt")) or 0,
            nodes=_text(row.get("nodes")) or None,
        ),
        tasks=tasks_of(tasks) if array else (),
    )


def _number(value: Any) -> int | None:
    if isinstance(value, Mapping):
        return int(value["number"]) if value.get("set") and not value.get("infinite") else None
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    """A comment is a string, but `{"administrator": "", "job": "…", "system": ""}` in the REST documents of 23.02."""
    return str(value.get("job") or "") if isinstance(value, Mapping) else str(value or "")


_PAIR = re.compile(r"(?:^|\s)([A-Za-z][\w/:.]*)=(.*?)(?=\s+[A-Za-z][\w/:.]*=|\s*$)")


def pairs(line: str) -> dict[str, str]:
    """`Key=value` of one line of `scontrol --oneliner`; a value goes on to the next key."""
    return {match[1]: match[2] for match in _PAIR.finditer(line)}


def from_scontrol(text: str) -> list[Job]:
    """The jobs in the output of `scontrol show job --oneliner`, one a line."""
    return [_from_pairs(found) for line in text.splitlines() if "JobId" in (found := pairs(line))]


def _from_pairs(found: Mapping[str, str]) -> Job:
    phase, word = phase_of([found.get("JobState", "UNKNOWN")])
    start, end = epoch(found.get("StartTime")), epoch(found.get("EndTime"))
    return Job(
        id=found.get("ArrayJobId", found["JobId"]),
        comment=found.get("Comment", ""),
        status=JobStatus(
            phase=phase,
            word=word,
            reason=None if found.get("Reason") in (None, "", "None") else found["Reason"],
            expected_start=start if phase == "waiting" else None,
            started=start if phase != "waiting" else None,
            ended=end if phase not in ("waiting", "running") else None,
            restarts=int(found.get("Restarts") or 0),
            nodes=None if found.get("NodeList") in (None, "", "(null)") else found["NodeList"],
        ),
        tasks=tasks_of(found.get("ArrayTaskId", "")),
    )


SACCT_FORMAT = "JobIDRaw,JobID,State,Start,End,NodeList"


def from_sacct(text: str) -> list[Job]:
    """The jobs in the output of `sacct -X -n -P -o SACCT_FORMAT`."""
    return list(_from_rows(text))


def _from_rows(text: str) -> Iterator[Job]:
    for line in text.splitlines():
        raw, shown, state, start, end, nodes = (*line.split("|"), "", "", "", "", "")[:6]
        if not raw.strip():
            continue
        # `CANCELLED by 1000` names the user
        phase, word = phase_of([state.split()[0].rstrip("+") if state.split() else "UNKNOWN"])
        status = JobStatus(
            phase=phase,
            word=word,
            reason=state if " " in state else None,
            started=epoch(start),
            ended=epoch(end) if phase not in ("waiting", "running") else None,
            nodes=nodes if nodes not in ("", "None assigned") else None,
        )
        array, _, tasks = shown.partition("_")
        yield Job(id=array or raw, comment="", status=status, tasks=tasks_of(tasks))


def epoch(text: str | None) -> float | None:
    """Seconds since the epoch of a time as Slurm prints it to people: local, without a zone."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:  # `Unknown`, `N/A`, `None`
        return None


LISTING = "%F|%K|%T|%k"


def from_listing(text: str) -> list[Job]:
    """The jobs in the output of `squeue --noheader --format=LISTING`."""
    jobs = []
    for line in text.splitlines():
        job, tasks, state, comment = (*line.strip().split("|", 3), "", "", "")[:4]
        phase, word = phase_of([state])
        jobs.append(Job(id=job, comment=comment, status=JobStatus(phase=phase, word=word), tasks=tasks_of(tasks)))
    return jobs
