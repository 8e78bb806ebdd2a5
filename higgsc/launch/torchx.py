"""TorchX as a scheduler, `torchx:NAME`: its Runner carries out the emitted components, one step after the other.

TorchX knows no dependencies between jobs and no key to find a job by, so `submit` stays and waits for each step. Its
schedulers are handed to the Runner by name; registering one as an entry point would hide all others.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import read_receipt
from higgsc.contract.state import read_state
from higgsc.launch.built import Target
from higgsc.launch.scheduler import JobPhase, JobStatus, RefusedError, Submission, UnreachableError

SESSION = "higgsc"
SECONDS_BETWEEN_LOOKS = 1.0

_PHASES: dict[str, JobPhase] = {
    "UNSUBMITTED": "waiting",
    "SUBMITTED": "waiting",
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}
_WITHOUT_THIS_ENVIRONMENT = ("kubernetes", "kubernetes_mcad", "local_docker", "aws_batch", "gcp_batch", "aws_sagemaker")
"""Schedulers of TorchX whose jobs do not see the variables of whoever submits them."""


def create(argument: str | None, **options: object) -> TorchX:
    """The scheduler of TorchX with that name.

    Raises:
        StepError: None is named, TorchX is not installed (69), or has none of that name (2).
    """
    try:
        from torchx.schedulers import DEFAULT_SCHEDULER_MODULES
    except ModuleNotFoundError as error:
        raise StepError(
            f"TorchX is not installed here ({error.name} is missing)",
            code=ExitCode.SCHEDULER_UNREACHABLE,
            help="pip install 'higgsc[torchx]', in an environment of its own: it pins an old urllib3",
        ) from error
    if argument is None or argument not in DEFAULT_SCHEDULER_MODULES:
        raise StepError(
            f"TorchX has no scheduler `{argument}`" if argument else "`torchx` needs the name of one of its schedulers",
            code=ExitCode.USAGE,
            help=f"write `torchx:NAME` with one of {', '.join(DEFAULT_SCHEDULER_MODULES)}",
        )
    return TorchX(argument, DEFAULT_SCHEDULER_MODULES[argument])


class TorchX:
    """One scheduler of TorchX."""

    def __init__(self, kind: str, module: str) -> None:
        from importlib import import_module

        from torchx.runner import Runner

        self.name = f"torchx:{kind}"
        self.kind = kind
        try:
            factory = import_module(module).create_scheduler
        except ModuleNotFoundError as error:
            raise StepError(
                f"TorchX's scheduler `{kind}` needs {error.name}, which is not installed",
                code=ExitCode.SCHEDULER_UNREACHABLE,
                help=f"pip install {error.name}",
            ) from error
        self.runner: Any = Runner(SESSION, scheduler_factories={kind: factory})

    def commands(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> list[tuple[str, ...]]:
        """The same as command lines of TorchX; we call its Runner instead."""
        options = ",".join(f"{key}={value}" for key, value in self._options(target).items())
        head = (
            "torchx",
            "run",
            "--scheduler",
            self.kind,
            *(("--scheduler_args", options) if options else ()),
            "--wait",
        )
        return [(*head, self._component(target, submission.step.name)) for submission in submissions]

    def check(self, target: Target, submissions: Sequence[Submission]) -> None:
        """Let TorchX make the request of each step, and send none."""
        if target.plan.secrets and self.kind in _WITHOUT_THIS_ENVIRONMENT:
            raise RefusedError(
                f"TorchX's scheduler `{self.kind}` cannot hand over secrets without writing them into the job",
                step=submissions[0].step.name,
                path="secrets",
                help="`--scheduler kubernetes` refers to them by name" if "kubernetes" in self.kind else None,
            )
        for submission in submissions:
            self._dry_run(target, submission.step.name)

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Nothing: TorchX has no place for a key."""
        return {}

    def submit(
        self, target: Target, submissions: Sequence[Submission], jobs: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        """Schedule each step and wait for its end.

        Raises:
            StepError: A step failed (70), or stopped early and can be taken up again (75).
        """
        for submission in submissions:
            step = submission.step.name
            request = self._dry_run(target, step)
            with chdir(target.root), self._programs():
                handle = str(self.runner.schedule(request))
            yield step, handle
            with self._programs():
                status = self.runner.wait(handle, wait_interval=SECONDS_BETWEEN_LOOKS)
            state = status.state.name if status is not None else "UNKNOWN"
            if state != "SUCCEEDED":
                raise StepError(
                    f"{step} ended as {state} ({handle})",
                    code=ExitCode.INTERNAL,
                    help=f"torchx log {handle}" if self.kind != "local_cwd" else f"read {self._logs(target)}",
                )
            left = read_state(target.run, step)
            if left is not None and left.phase == "interrupted" and read_receipt(target.run, step) is None:
                raise StepError(
                    f"{step} was stopped at {left.done} of {left.total}",
                    code=ExitCode.INTERRUPTED,
                    help="submit it again to go on",
                )

    def states(self, target: Target, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        """As TorchX reports them. Of `local_cwd`, only the process that submitted knows."""
        found = {}
        for step, handle in jobs.items():
            with self._programs():
                status = self.runner.status(handle)
            word = status.state.name if status is not None else "UNKNOWN"
            found[step] = JobStatus(
                phase=_PHASES.get(word, "unknown"),
                word=word,
                reason=(status.msg or None) if status is not None else None,
                restarts=status.num_restarts if status is not None else 0,
            )
        return found

    def cancel(self, target: Target, jobs: Mapping[str, str]) -> None:
        """Cancel those that TorchX still knows."""
        for handle in jobs.values():
            with self._programs():
                self.runner.cancel(handle)

    def log(self, target: Target, step: str, job: str, *, follow: bool) -> Iterator[str]:
        """Of the step's first replica."""
        for line in self.runner.log_lines(job, step, k=0, should_tail=follow):
            yield str(line).rstrip("\n")

    @contextmanager
    def _programs(self) -> Iterator[None]:
        """Name the program that TorchX called in vain: without Slurm's accounting, its `sacct` fails, for instance."""
        try:
            yield
        except subprocess.CalledProcessError as error:
            program = error.cmd if isinstance(error.cmd, str) else error.cmd[0]
            raise UnreachableError(f"TorchX called `{program}`, which ended with {error.returncode}") from error
        except FileNotFoundError as error:
            raise UnreachableError(f"TorchX called `{error.filename}`, which is not installed here") from error

    def _dry_run(self, target: Target, step: str) -> Any:
        """TorchX's request for a step.

        Raises:
            RefusedError: TorchX will not make one.
        """
        from torchx.runner import config
        from torchx.specs import InvalidRunConfigException

        options: dict[str, object] = dict(self._options(target))
        config.apply(scheduler=self.kind, cfg=options, dirs=[str(target.root)])
        with chdir(target.root):  # `local_cwd` runs where it is asked
            try:
                return self.runner.dryrun_component(self._component(target, step), [], self.kind, cfg=options)
            except (InvalidRunConfigException, ValueError) as error:
                raise RefusedError(
                    f"TorchX refuses it: {error}",
                    step=step,
                    help=f"`torchx runopts {self.kind}` lists the options; set them in .torchxconfig below "
                    f"[{self.kind}]",
                ) from error

    def _options(self, target: Target) -> dict[str, str]:
        """The site in the words of this scheduler; what it has no word for is refused, not dropped."""
        site = target.plan.site
        known = {name for name, _ in self.runner.scheduler_run_opts(self.kind)}
        options: dict[str, str] = {}
        if self.kind == "slurm":
            same = ("partition", "account", "qos", "constraint", "reservation", "exclude")
            environments = ("modules", "venv", "conda", "container")
            words = {"time_limit": "time", "mail": "mail-user"} | {name: name for name in (*same, *environments)}
            for ours, theirs in words.items():
                if not site.get(ours):
                    continue
                if theirs not in known:
                    raise RefusedError(
                        f"this version of TorchX has no option `{theirs}` for Slurm",
                        step=target.plan.steps[0].name,
                        path=f"site.{ours}",
                        help="`--scheduler slurm` has",
                    )
                options[theirs] = site[ours]
        if self.kind == "local_cwd":
            options["log_dir"] = self._logs(target)
        cluster = site.get("kubernetes")
        if self.kind == "kubernetes" and cluster is not None:
            options["namespace"] = cluster["namespace"]
            if cluster["service_account"] is not None:
                options["service_account"] = cluster["service_account"]
        return options

    def _logs(self, target: Target) -> str:
        return str(target.run / "logs" / "torchx")

    def _component(self, target: Target, step: str) -> str:
        return f"{os.path.relpath(target.folder, target.root)}/torchx/components.py:{step}"
