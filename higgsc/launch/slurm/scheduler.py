"""Slurm behind the protocol: `sbatch` for each step, `squeue`, `scontrol` and, where it works, `sacct`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.slurm import SHARDS, array_options
from higgsc.launch.built import Target
from higgsc.launch.scheduler import JobPhase, JobStatus, Submission, UnreachableError
from higgsc.launch.slurm import parse
from higgsc.launch.slurm.client import Answer, call, environment_to_submit, patiently
from higgsc.launch.slurm.refusal import cluster_facts, refusal
from higgsc.launch.sweep import Handover, Sweep, array_logs
from higgsc.launch.tail import follow, tail

_ORDER: tuple[JobPhase, ...] = ("running", "waiting", "failed", "cancelled", "unknown", "done")
"""Of the tasks of an array, whose state stands for the whole."""


class SlurmScheduler:
    """The cluster that Slurm's commands on this machine talk to."""

    name = "slurm"

    def __init__(self, *, retry_for: float) -> None:
        self.retry_for = retry_for

    def commands(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> list[tuple[str, ...]]:
        commands = [_test_only(target, submission) for submission in submissions]
        known = dict(jobs)
        for submission in submissions:
            previous = None
            for link in range(_links(target, submission)):
                commands.append(_sbatch(target, submission, known, link, previous))
                previous = f"<{submission.step.name}{f'-{link + 1}' if link else ''}>"
            known[submission.step.name] = previous or ""
        return commands

    def check(self, target: Target, submissions: Sequence[Submission]) -> None:
        for submission in submissions:
            argv = _test_only(target, submission)
            patiently(partial(self._check, target, submission.step.name, argv), retry_for=self.retry_for)

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        if _chain(target) > 1:
            return {}  # some links of a chain may be there and others not: each is looked for when its turn comes
        return patiently(lambda: self._find(keys), retry_for=self.retry_for)

    def submit(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        (target.run / "logs").mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of a job's output
        known = dict(jobs)
        for submission in submissions:
            known[submission.step.name] = self._submit(target, submission, known)
            yield submission.step.name, known[submission.step.name]

    def array_commands(self, sweep: Sweep, array: Handover, after: Sequence[str]) -> list[tuple[str, ...]]:
        return [_test_only_array(sweep, array), _sbatch_array(sweep, array, after)]

    def check_array(self, sweep: Sweep, array: Handover) -> None:
        target = sweep.points[next(iter(array.tasks))]
        argv = _test_only_array(sweep, array)
        patiently(lambda: self._check(target, array.step, argv, tasks=max(array.tasks) + 1), retry_for=self.retry_for)

    def submit_array(self, sweep: Sweep, array: Handover, after: Sequence[str]) -> str:
        sweep.logs.mkdir(parents=True, exist_ok=True)
        target = sweep.points[next(iter(array.tasks))]
        return self._submit_one(target, array.step, _sbatch_array(sweep, array, after), array.key, known=False)

    def states(self, target: Target, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        return patiently(lambda: self._states(jobs), retry_for=self.retry_for)

    def cancel(self, target: Target, jobs: Mapping[str, str]) -> None:
        if not jobs:
            return
        ids = [link for job in jobs.values() for link in job.split(",")]
        # --quiet: a job that has ended meanwhile is no error.
        answer = patiently(lambda: call("scancel", "--quiet", *ids), retry_for=self.retry_for)
        if answer.code != 0:
            raise StepError(f"scancel: {answer.complaint}", code=ExitCode.SCHEDULER_UNREACHABLE)

    def log(self, target: Target, step: str, job: str, *, follow: bool) -> Iterator[str]:
        return self._lines(target, step, job, follow)

    def _lines(self, target: Target, step: str, job: str, following: bool) -> Iterator[str]:
        def files() -> list[Path]:
            # A task says in the array's log where it goes on, or why it does not come so far.
            folders = (*array_logs(target), target.run / "logs")
            return [
                log
                for link in job.split(",")
                for folder in folders
                for log in sorted(folder.glob(f"{step}-{link}*.log"))
                if _is(log, link)
            ]

        if not following:
            return tail(files)
        return follow(files, lambda: self.states(target, {step: job})[step].live)

    def _check(self, target: Target, step: str, argv: tuple[str, ...], *, tasks: int = 1) -> None:
        answer = self._call(target, argv)
        if answer.code == 0:
            return
        facts = cluster_facts()
        refused = refusal(target, target.step(step), answer, facts, tasks=tasks)
        # A controller that was just started refuses everything until its nodes have reported.
        starting = facts is not None and any("unknown" in node.state for node in facts.nodes)
        if starting and "node configuration" in answer.stderr:
            raise UnreachableError(f"the nodes have not reported to the controller yet: {refused.message}")
        raise refused

    def _call(self, target: Target, argv: tuple[str, ...]) -> Answer:
        env = environment_to_submit(target.plan.site)
        # The job's `python` is the one that runs this program, unless the site's activation names another.
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        return call(*argv, env=env, cwd=str(target.root))

    def _submit(self, target: Target, submission: Submission, jobs: Mapping[str, str]) -> str:
        """The id of the job; of a chain, the ids of its links with commas between them."""
        links: list[str] = []
        for link in range(_links(target, submission)):
            argv = _sbatch(target, submission, jobs, link, links[-1] if links else None)
            key, known = _key(submission, link), _chain(target) > 1
            links.append(self._submit_one(target, submission.step.name, argv, key, known=known))
        return ",".join(links)

    def _submit_one(self, target: Target, step: str, argv: tuple[str, ...], key: str, *, known: bool) -> str:
        """Submit unless the key is found.

        Args:
            known: Whether there may be such a job before the first try.
        """
        look_first = known

        def attempt() -> str:
            nonlocal look_first
            if look_first and key in (found := self._find([key])):
                return found[key]  # the last request was heard, its answer was lost
            look_first = True
            answer = self._call(target, argv)
            if answer.code != 0:
                raise refusal(target, target.step(step), answer, cluster_facts())
            job = answer.stdout.strip().partition(";")[0]  # a federation prints `id;cluster`
            if not job.isdecimal():
                raise StepError(f"sbatch printed no job id but {answer.stdout!r}", code=ExitCode.INTERNAL)
            return job

        return patiently(attempt, retry_for=self.retry_for)

    def _find(self, keys: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for job in self._mine():
            if job.comment and job.status.live:
                # A task of an array goes by the array's key with its index, as by the array's id.
                found |= {job.comment + job_id.removeprefix(job.id): job_id for job_id in job.ids}
        return {key: found[key] for key in keys if key in found}

    def _mine(self) -> list[parse.Job]:
        """The user's jobs in the queue."""
        answer = call("squeue", "--me", "--json")
        if answer.code == 0:
            try:
                return parse.from_squeue(answer.stdout)
            except ConnectionError as error:
                raise UnreachableError(f"Slurm does not answer: {error}") from error
            except (ValueError, KeyError, TypeError):
                pass  # a shape of a version to come: the plain listing has not changed in ten years
        answer = call("squeue", "--me", "--noheader", f"--format={parse.LISTING}")
        if answer.code != 0:
            raise UnreachableError(f"squeue: {answer.complaint}")
        return parse.from_listing(answer.stdout)

    def _states(self, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        queued: dict[str, list[JobStatus]] = {}
        for job in self._mine():
            for job_id in job.ids:
                queued.setdefault(job_id, []).append(job.status)
        return {
            step: _whole([status for link in job.split(",") for status in queued.get(link) or self._ended(link)])
            for step, job in jobs.items()
        }

    def _ended(self, job: str) -> list[JobStatus]:
        """A job that the queue does not hold: slurmctld remembers it for a while, the accounting (if any) for good."""
        answer = call("scontrol", "show", "job", "--oneliner", job)
        if answer.code == 0 and (found := parse.from_scontrol(answer.stdout)):
            return [entry.status for entry in found]
        try:
            answer = call("sacct", "-X", "-n", "-P", "-j", job, "-o", parse.SACCT_FORMAT)
        except (StepError, UnreachableError):
            return []  # many clusters have no accounting, and some login nodes no sacct
        return [entry.status for entry in parse.from_sacct(answer.stdout)] if answer.code == 0 else []


def _links(target: Target, submission: Submission) -> int:
    """How many jobs in a row a step takes: a training on a cluster without requeueing, more than one."""
    return _chain(target) if submission.step.interruptible else 1


def _chain(target: Target) -> int:
    return int(target.plan.site.get("chain") or 1)


def _key(submission: Submission, link: int) -> str:
    return f"{submission.key}-{link + 1}" if link else submission.key


def _array(target: Target, submission: Submission) -> tuple[str, ...]:
    step, plan = submission.step, target.plan
    return array_options(step.name, step.tasks, plan.run, plan.site.get("array_limit"))


def _script(target: Target, submission: Submission) -> tuple[str, ...]:
    """The script of a step, and what to tell it."""
    path = os.path.relpath(target.folder / "slurm" / f"{submission.step.name}.sbatch", target.root)
    return (path, SHARDS) if submission.step.tasks > 1 else (path,)


def _test_only(target: Target, submission: Submission) -> tuple[str, ...]:
    """The command that asks whether a step could be submitted."""
    return ("sbatch", "--test-only", *_array(target, submission), *_script(target, submission))


def _array_script(sweep: Sweep, array: Handover) -> tuple[str, ...]:
    """The script of an array with what to make of it: its header names all points, which is said anew for a part."""
    script = os.path.relpath(sweep.folder / "slurm" / f"{array.step}.sbatch", sweep.root)
    if len(array.tasks) == len(sweep.points):
        return (script,)
    limit = sweep.points[0].plan.site.get("array_limit")
    return (f"--array={','.join(map(str, array.tasks))}{f'%{limit}' if limit is not None else ''}", script)


def _test_only_array(sweep: Sweep, array: Handover) -> tuple[str, ...]:
    return ("sbatch", "--test-only", *_array_script(sweep, array))


def _sbatch_array(sweep: Sweep, array: Handover, after: Sequence[str]) -> tuple[str, ...]:
    words = ["sbatch", "--parsable", f"--comment={array.key}"]
    if after:
        words += [f"--dependency=aftercorr:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    return (*words, *_array_script(sweep, array))


def _sbatch(
    target: Target, submission: Submission, jobs: Mapping[str, str], link: int, previous: str | None
) -> tuple[str, ...]:
    """The command that submits a step, or a link of its chain that follows `previous`, however that ends."""
    words = ["sbatch", "--parsable", f"--comment={_key(submission, link)}"]
    if previous is not None:
        words.append(f"--dependency=afterany:{previous}")
    elif submission.after:
        words.append(f"--dependency=afterok:{':'.join(jobs[name].split(',')[-1] for name in submission.after)}")
    if previous is not None or submission.after:
        words.append("--kill-on-invalid-dep=yes")
    return (*words, *_array(target, submission), *_script(target, submission))


def _is(log: Path, job: str) -> bool:
    """Whether a log is that of the job or of one of its tasks, and not of one whose id begins alike."""
    return not log.stem.rpartition("-")[2].removeprefix(job)[:1].isdigit()


def _whole(tasks: Sequence[JobStatus]) -> JobStatus:
    """One status for all tasks of a job."""
    if not tasks:
        return JobStatus(phase="unknown", word="UNKNOWN", reason="Slurm does not know the job any more")
    first = min(tasks, key=lambda status: _ORDER.index(status.phase))
    return replace(first, restarts=sum(status.restarts for status in tasks))


def create(argument: str | None, *, retry_for: float = 60.0) -> SlurmScheduler:
    """For `scheduler_named`.

    Args:
        argument: There is none to give.
        retry_for: Seconds to go on trying while the controller does not answer.
    """
    if argument is not None:
        raise StepError("slurm takes no argument; choose a cluster with --site", code=ExitCode.USAGE)
    return SlurmScheduler(retry_for=retry_for)
