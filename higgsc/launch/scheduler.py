"""What `submit`, `status`, `logs` and `cancel` ask of a scheduler, and the table of those there are.

A scheduler is a module with a function `create(argument)`, imported when its name is asked for. It knows how to hand
jobs over and how to ask after them. What it does not know is what has to run, what is at work already and what to
remember: that is `launch/submit.py` with the journal, the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import BuiltStep, Target

JobPhase = Literal["waiting", "running", "done", "failed", "cancelled", "unknown"]
"""`unknown`: the scheduler uses a word that we do not know, or knows the job no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A step on its way to the scheduler."""

    step: BuiltStep
    key: str
    """Idempotency key, `higgsc:0123456789abcdef`: goes where the scheduler lets it be found again (comment, label)."""
    after: tuple[str, ...]
    """Names of the steps that have to succeed first; finished ones are not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """What a scheduler says of a job."""

    phase: JobPhase
    word: str
    """The scheduler's own: `PENDING`, `NODE_FAIL`."""
    reason: str | None = None
    """Why it waits, or how it ended."""
    expected_start: float | None = None
    """Seconds since the epoch, of a waiting job, if the scheduler has an estimate."""
    started: float | None = None
    ended: float | None = None
    restarts: int = 0
    nodes: str | None = None

    @property
    def live(self) -> bool:
        """Whether the job is still in the scheduler's hands."""
        return self.phase in ("waiting", "running")


class UnreachableError(StepError):
    """The scheduler does not answer. Whether it took the last request is not known."""

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message, code=ExitCode.SCHEDULER_UNREACHABLE, help=help)


class RefusedError(StepError):
    """The scheduler will not take a job.

    Args:
        message: Its complaint, lowercase, without a final period.
        step: The step that it is about.
        path: Dotted path of the value in the spec that the complaint is about, such as `site.partition`.
        help: What to do about it.
    """

    def __init__(self, message: str, *, step: str, path: str | None = None, help: str | None = None) -> None:
        super().__init__(f"{step}: {message}", code=ExitCode.DIAGNOSTICS, help=help)
        self.step = step
        self.spec_path = path


class Scheduler(Protocol):
    """The other end. All methods may raise `UnreachableError`, which the caller retries, and StepError (66) when the
    scheduler's programs are not installed."""

    name: str
    """As on the command line: `slurm`, `torchx:local_cwd`."""

    def commands(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> list[tuple[str, ...]]:
        """What `submit` would execute, in order, for `--dry-run`; ids not known yet as `<step>`."""

    def check(self, target: Target, submissions: Sequence[Submission]) -> None:
        """Ask the scheduler whether it would take the jobs, without leaving any behind.

        Raises:
            RefusedError: It would not.
        """

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Ids by key of those jobs that the scheduler has in its hands (waiting or running)."""

    def submit(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        """Hand the jobs over, in order. The journal is written after each one that is yielded.

        Args:
            target: The build.
            submissions: In the order of the plan.
            jobs: Ids, by step, of jobs that are at work already and that `after` may name.

        Yields:
            Step and job id, as soon as the scheduler has taken the job.

        Raises:
            RefusedError: The scheduler does not take one; those before it are submitted.
        """

    def states(self, target: Target, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        """The state of jobs (ids by step), by step. A job that the scheduler does not know is `unknown`."""

    def cancel(self, target: Target, jobs: Mapping[str, str]) -> None:
        """End jobs (ids by step) at once. Those that have ended are no error."""

    def log(self, target: Target, step: str, job: str, *, follow: bool) -> Iterator[str]:
        """Lines of a job's log, without their ends; with `follow`, until the job is over."""


SCHEDULERS = {
    "slurm": "higgsc.launch.slurm.scheduler",
    "local": "higgsc.launch.background",
    "torchx": "higgsc.launch.torchx",
    "kubernetes": "higgsc.launch.kubernetes",
}
"""Modules by name. What follows a colon in the name is handed to the module's `create`: `torchx:local_cwd`."""


def scheduler_named(name: str, **options: object) -> Scheduler:
    """The scheduler of that name, as after `--scheduler`.

    Args:
        name: A key of `SCHEDULERS`, with an argument behind a colon if the scheduler takes one.
        options: Handed to `create`: `retry_for` (seconds).

    Raises:
        StepError: There is none of that name (2).
    """
    kind, colon, argument = name.partition(":")
    if kind not in SCHEDULERS:
        raise StepError(f"no scheduler `{name}`; there are {', '.join(SCHEDULERS)}", code=ExitCode.USAGE)
    scheduler: Scheduler = import_module(SCHEDULERS[kind]).create(argument if colon else None, **options)
    return scheduler
