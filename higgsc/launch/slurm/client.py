"""Slurm's commands: started with argument lists, in an environment that holds no surprises, and retried when the
controller does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.scheduler import UnreachableError

SECONDS_FOR_AN_ANSWER = 120
"""Longest time that one command may take; Slurm's own give up after 10 to 30 seconds."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
"""Seconds between two tries: doubled each time."""

NO_ANSWER = (
    "Unable to contact slurm controller",
    "Connection refused",
    "connect failure",
    "Socket timed out",
    "Communication connection failure",
    "Zero Bytes were transmitted or received",
    "Transport endpoint is not connected",
    "backup controller in standby mode",
    "temporarily unable to accept job",
    "configuration source",
    "authentication error",
    "authentication credential",
    "Munge encode failed",
    "Resource temporarily unavailable",
)
"""Parts of what Slurm 21 to 25 say when the controller, or the way to it, is down."""

_KEPT_SLURM = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_ROOT"}
_SITE_VALUES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_CONSTRAINT": "constraint",
}
_HANDED_ON = {
    "HOME",
    "KRB5CCNAME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
    "USER",
}
_PREFIXES = ("SBATCH_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_")

Answered = TypeVar("Answered")


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """What it said on stderr, a line each, without the `sbatch: error:` in front."""
        lines = (line.split("error:", 1)[-1].strip() for line in self.stderr.splitlines())
        return "; ".join(line for line in lines if line)


def environment() -> dict[str, str]:
    """The environment for Slurm's commands that only ask.

    Variables such as `SQUEUE_STATES` hide jobs, and `SLURM_JOB_ID` of an interactive job changes what is meant; only
    those that find the cluster are kept.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT_SLURM or not name.startswith(_PREFIXES)}
    # Lists of an array's tasks are cut off at 64 characters if nobody says 0.
    return {**kept, "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}


def environment_to_submit(site: Mapping[str, object]) -> dict[str, str]:
    """The environment for `sbatch`: no more than a job may get to see.

    slurmctld keeps a job's environment on its disk, and on some clusters in a database. What is not here cannot get
    there, whatever `--export` a script asks for. Variables such as `SBATCH_TIMELIMIT`, which win over the `#SBATCH`
    lines of a script, are left out too, but for a user's defaults (`SBATCH_ACCOUNT`) of values that the site leaves
    open.

    Args:
        site: The site as in `plan.json`.
    """
    kept = _HANDED_ON | _KEPT_SLURM | {name for name, key in _SITE_VALUES.items() if site.get(key) is None}
    return {name: value for name, value in os.environ.items() if name in kept}


def call(*argv: str, env: Mapping[str, str] | None = None, cwd: str | None = None) -> Answer:
    """One try.

    Raises:
        StepError: The command is not installed (66).
        UnreachableError: The controller does not answer; whether it has heard the question is not known.
    """
    try:
        ended = subprocess.run(
            argv,
            env=environment() if env is None else env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_FOR_AN_ANSWER,
            check=False,
        )
    except FileNotFoundError as error:
        raise StepError(
            f"{argv[0]} is not installed here",
            code=ExitCode.MISSING_INPUT,
            help="log in to a node of the cluster that has Slurm's commands; `higgsc run` needs no scheduler",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{argv[0]} has not answered for {SECONDS_FOR_AN_ANSWER} s") from error
    answer = Answer(ended.returncode, ended.stdout, ended.stderr)
    if answer.code != 0 and any(part in answer.stderr for part in NO_ANSWER):
        raise UnreachableError(f"Slurm does not answer: {answer.complaint}")
    return answer


def patiently(attempt: Callable[[], Answered], *, retry_for: float) -> Answered:
    """What `attempt` returns, tried again with growing pauses while Slurm does not answer.

    An attempt that changes something has to find out first whether an earlier one was heard after all.

    Args:
        attempt: The thing to do.
        retry_for: Seconds after which no further try is made.

    Raises:
        UnreachableError: There was no answer within that time.
    """
    started, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return attempt()
        except UnreachableError as error:
            waited = time.monotonic() - started
            if waited + pause > retry_for:
                raise UnreachableError(
                    f"{error.message} (tried for {waited:.0f} s)",
                    help="`sinfo` and `scontrol ping` say whether the cluster is up; repeating the command is safe, "
                    "nothing is submitted twice",
                ) from error
            print(f"{error.message}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
