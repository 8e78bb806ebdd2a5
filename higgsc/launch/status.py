"""How far a run is: receipts, the journal, the scheduler, the step's own state and its heartbeat, in one picture.

Receipts are the truth for what is done, the scheduler for what waits and runs, the step's state file for how an
interrupted one can be taken up. Where they contradict each other, the receipt wins over the scheduler, and the
scheduler over the journal.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from higgsc.contract.heartbeat import Heartbeat, read_heartbeat
from higgsc.contract.jobs import TrainJob, load_job
from higgsc.contract.outcome import StepError
from higgsc.contract.receipts import Receipt, read_receipt, why_stale
from higgsc.contract.state import StepState, read_state
from higgsc.launch.built import BuiltStep, Target
from higgsc.launch.folder import was_cancelled
from higgsc.launch.journal import JournalStep, read_journal
from higgsc.launch.scheduler import JobStatus, Scheduler

STATUS_SCHEMA = "higgsc.status/v1"

Shown = Literal[
    "not submitted", "waiting", "requeued", "running", "done", "failed", "interrupted", "cancelled", "unknown"
]
"""`requeued`: waits for its next start. `interrupted`: ended before it was done; submitting again takes it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running step is."""

    done: int
    total: int | None
    unit: str
    message: str
    age: float
    """Seconds since the last sign of life, by this machine's clock."""
    loss: float | None = None
    """Audio loss."""
    tokens_per_second: float | None = None
    """Of all GPUs together."""
    eta: float | None = None
    """Seconds to the end of the step at the present pace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatus:
    """One step of a run. Times are seconds since the epoch."""

    step: str
    state: Shown
    job: str | None
    word: str | None
    """The scheduler's own word for the state."""
    reason: str | None
    """Why it waits, or how it ended."""
    after: tuple[str, ...]
    """Steps that it still waits for."""
    expected_start: float | None
    started: float | None
    seconds: float | None
    """How long it took, or has been running."""
    restarts: int
    nodes: str | None
    mesh: str | None
    """How several processes train together: `2x8, replicate 2 × shard 8`, machines by processes of each first."""
    saved: str | None
    """What an interrupted step has kept: `120/300`."""
    summary: str | None
    progress: Progress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run."""

    name: str
    run: str
    """The folder, absolute."""
    scheduler: str | None
    submitted: str | None
    cancelled: bool
    steps: tuple[StepStatus, ...]

    @property
    def live(self) -> bool:
        """Whether anything waits or runs."""
        return any(step.state in ("waiting", "requeued", "running") for step in self.steps)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {"schema": STATUS_SCHEMA, **asdict(self), "live": self.live}


def status_of(target: Target, scheduler: Scheduler | None) -> RunStatus:
    """Look at a run.

    Args:
        target: Its build.
        scheduler: That of its journal; None where nothing was submitted.

    Raises:
        UnreachableError: The scheduler does not answer.
    """
    journal = read_journal(target.run)
    jobs = journal.jobs if journal is not None else {}
    said = scheduler.states(target, jobs) if scheduler is not None and jobs else {}
    beat = _heartbeat(target.run)
    done: set[str] = set()
    steps = []
    for step in target.plan.steps:
        entry = journal.steps.get(step.name) if journal is not None else None
        found = _step(step, target, entry, said.get(step.name), beat, done, cancelled=was_cancelled(target.run))
        done |= {step.name} if found.state == "done" else set()
        steps.append(found)
    return RunStatus(
        name=target.plan.name,
        run=str(target.run),
        scheduler=journal.scheduler if journal is not None else None,
        submitted=journal.submitted if journal is not None else None,
        cancelled=was_cancelled(target.run),
        steps=tuple(steps),
    )


def _step(
    step: BuiltStep,
    target: Target,
    entry: JournalStep | None,
    job: JobStatus | None,
    beat: Heartbeat | None,
    done: set[str],
    *,
    cancelled: bool,
) -> StepStatus:
    run = target.run
    receipt = read_receipt(run, step.name)
    stale = why_stale(receipt, job_path=target.root / step.job_path, root=target.root)
    kept = _kept(run, step.name)
    state, reason = _state(entry, job, None if stale else receipt, kept, step_cancelled=cancelled)
    if state == "not submitted" and receipt is not None:
        reason = stale
    running = state == "running"
    started = job.started if job is not None else None
    finished = receipt is not None and state == "done"
    return StepStatus(
        step=step.name,
        state=state,
        job=entry.job if entry is not None else None,
        word=job.word if job is not None else None,
        reason=reason,
        after=tuple(need for need in step.needs if need not in done) if state in ("waiting", "not submitted") else (),
        expected_start=job.expected_start if job is not None and state in ("waiting", "requeued") else None,
        started=started,
        seconds=receipt.seconds
        if finished and receipt is not None
        else ((job.ended if job and job.ended else time.time()) - started if started else None),
        restarts=job.restarts if job is not None else 0,
        nodes=job.nodes if job is not None else None,
        mesh=_mesh(step, target.root),
        saved=f"{kept.done}/{kept.total}"
        if kept is not None and kept.phase == "interrupted" and not finished
        else None,
        summary=receipt.summary if finished and receipt is not None else None,
        progress=_progress(step.name, beat) if running else None,
    )


def _state(
    entry: JournalStep | None,
    job: JobStatus | None,
    receipt: Receipt | None,
    kept: StepState | None,
    *,
    step_cancelled: bool,
) -> tuple[Shown, str | None]:
    """The state of a step, and the reason if there is one to give."""
    if job is not None and job.phase == "running":
        return "running", None
    if job is not None and job.phase == "waiting":
        return ("requeued" if job.restarts else "waiting"), job.reason
    if receipt is not None:
        return "done", None
    if entry is None or (job is None and entry.state in ("waiting", "skipped")):
        return "not submitted", None
    if job is None:
        return "unknown", "handed over, but the scheduler's answer was lost; submitting again finds the job"
    saved = kept is not None and kept.phase == "interrupted"
    # Slurm forgets tasks of an array that were cancelled before they started.
    if job.phase == "cancelled" or (step_cancelled and (saved or job.phase == "unknown")):
        return "cancelled", None if step_cancelled else _ended(job)
    if saved:
        return "interrupted", _ended(job)
    if job.phase == "done":
        return "failed", "ended without a receipt"
    if job.phase == "failed":
        return ("interrupted" if entry.state == "interrupted" else "failed"), _ended(job)
    return "unknown", job.reason


def _ended(job: JobStatus) -> str | None:
    """How a job ended, in words: `TIMEOUT`, `NonZeroExitCode`."""
    if job.word in ("TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL"):
        return job.word.lower().replace("_", " ")
    if job.reason in ("Dependency", "DependencyNeverSatisfied"):
        return "a step before it did not succeed"
    return job.reason


def _mesh(step: BuiltStep, root: Path) -> str | None:
    sizes = step.resources
    if sizes.nodes * sizes.processes_per_node == 1:
        return None
    try:
        job = load_job(root / step.job_path)
    except StepError:
        return None  # built by another version of higgsc; the step itself will complain
    return f"{sizes.nodes}x{sizes.processes_per_node}, {job.mesh.words}" if isinstance(job, TrainJob) else None


def _kept(run: Path, step: str) -> StepState | None:
    try:
        return read_state(run, step)
    except StepError:
        return None  # a file that is no state says nothing about the step; the step itself will complain


def _heartbeat(run: Path) -> Heartbeat | None:
    try:
        return read_heartbeat(run)
    except ValueError:
        return None  # written by another version of higgsc


def _progress(step: str, beat: Heartbeat | None) -> Progress | None:
    if beat is None or beat.step != step:
        return None
    age = max(0.0, time.time() - beat.time)
    return Progress(
        done=beat.done,
        total=beat.total,
        unit=beat.unit,
        message=beat.message,
        age=age,
        loss=beat.loss,
        tokens_per_second=beat.tokens_per_second,
        eta=None if beat.eta is None else max(0.0, beat.eta - age),
    )
