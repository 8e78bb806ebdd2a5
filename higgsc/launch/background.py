"""`--scheduler local`: `higgsc run` in the background, asked after like any other scheduler's jobs.

All steps of a run are one job: the runner's process. Whether it lives is told by the run's lock, which the system
takes back when a process dies, whatever it died of.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import Target
from higgsc.launch.folder import runner_at_work
from higgsc.launch.journal import read_journal
from higgsc.launch.scheduler import JobPhase, JobStatus, RefusedError, Submission
from higgsc.launch.tail import follow as follow_files
from higgsc.launch.tail import tail

_PHASES: dict[str, JobPhase] = {
    "waiting": "waiting",
    "submitting": "waiting",
    "submitted": "waiting",
    "running": "running",
    "done": "done",
    "skipped": "done",
    "failed": "failed",
    "interrupted": "failed",
    "cancelled": "cancelled",
}


class LocalScheduler:
    """This machine."""

    name = "local"

    def commands(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> list[tuple[str, ...]]:
        return [(sys.executable, "-m", "higgsc", "run", os.path.relpath(target.folder, target.root))]

    def check(self, target: Target, submissions: Sequence[Submission]) -> None:
        for submission in submissions:
            if (nodes := submission.step.resources.nodes) > 1:
                message = f"needs {nodes} nodes ({target.plan.hardware}); this is one"
                raise RefusedError(message, step=submission.step.name, path="hardware", help="use a cluster")

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        return {}  # a runner holds the lock, so that no second submit comes this far

    def submit(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        if not submissions:
            return
        log = target.run / "logs" / "run.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        (argv,) = self.commands(target, submissions, jobs)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                argv,
                cwd=target.root,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for submission in submissions:
            yield submission.step.name, str(process.pid)

    def states(self, target: Target, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        journal, alive = read_journal(target.run), runner_at_work(target.run)
        found = {}
        for step, job in jobs.items():
            state = journal.steps[step].state if journal is not None and step in journal.steps else "waiting"
            phase = _PHASES[state]
            reason = None
            if phase in ("waiting", "running") and not (alive or _runs(job)):
                phase, reason = ("failed", "its runner died") if phase == "running" else ("cancelled", "never started")
            found[step] = JobStatus(phase=phase, word=state, reason=reason)
        return found

    def cancel(self, target: Target, jobs: Mapping[str, str]) -> None:
        """SIGTERM for the runner, which stops its step, and waits for it to save."""
        for job in set(jobs.values()):
            if _runs(job) and runner_at_work(target.run):
                os.kill(int(job), signal.SIGTERM)

    def log(self, target: Target, step: str, job: str, *, follow: bool) -> Iterator[str]:
        def files() -> list[Path]:
            return sorted((target.run / "logs").glob(f"{step}.log"))

        return follow_files(files, lambda: self.states(target, {step: job})[step].live) if follow else tail(files)


def _runs(job: str) -> bool:
    """Whether the process exists and is ours: a number alone could be somebody else's by now."""
    try:
        return b"higgsc" in Path(f"/proc/{job}/cmdline").read_bytes()
    except OSError:
        return False


def create(argument: str | None, **_: object) -> LocalScheduler:
    """For `scheduler_named`.

    Args:
        argument: There is none to give.
    """
    if argument is not None:
        raise StepError("the local scheduler takes no argument", code=ExitCode.USAGE)
    return LocalScheduler()
