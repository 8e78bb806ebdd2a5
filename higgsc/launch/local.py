"""Carry a plan out on this machine: the emitted `torchrun/run.sh`, one step at a time.

A step is skipped while its receipt holds: same job file, same inputs, outputs still there, and no step before it
ran again. What a step prints goes to `<run>/logs/<step>.log`; its progress is read from the heartbeat.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import read_receipt, why_stale
from higgsc.contract.state import read_state
from higgsc.contract.stop import request_stop
from higgsc.launch.at_work import digest_at, live_jobs, refuse_other_work
from higgsc.launch.background import LocalScheduler
from higgsc.launch.built import BuiltPlan, BuiltStep, Target, open_build
from higgsc.launch.folder import RUN, held, start_afresh
from higgsc.launch.journal import Journal, JournalStep, now, read_journal
from higgsc.launch.watch import Watcher

SECONDS_TO_STOP = 300.0
"""How long an interrupted step may take to save and end by itself."""


def run_plan(build: Path, *, first: str | None = None) -> Iterator[str]:
    """Run what has to be run, in order.

    Args:
        build: The folder of a build.
        first: A step to repeat with all that follow it, finished or not.

    Yields:
        One line for each step that is done, then where its outputs are.

    Raises:
        StepError: A step failed (its own exit code), was interrupted (75), or cannot run here.
    """
    target = open_build(build)
    plan, root, run = target.plan, target.root, target.run
    names = [step.name for step in plan.steps]
    if first is not None and first not in names:
        raise StepError(f"no step `{first}`; the steps are {', '.join(names)}", code=ExitCode.USAGE)
    _refuse_what_needs_a_cluster(plan)
    with held(run, RUN):
        journal = _start(target)
        ran: set[str] = set()
        for step in plan.steps:
            reason = _reason_to_run(step, run, root, ran, forced=first is not None and step.name == first)
            if reason is None:
                journal.record(run, step.name, state="skipped", reason="done before, nothing changed")
                yield f"  {step.name:<9} done before   {_summary(run, step.name)}"
                continue
            _run_step(step, target, journal, reason)
            ran.add(step.name)
            yield f"  {step.name:<9} {_seconds(run, step.name):>7.1f} s     {_summary(run, step.name)}"
    for step in plan.steps:
        receipt = read_receipt(run, step.name)
        for output in receipt.outputs if receipt else ():
            yield f"  {step.name} → {os.path.relpath(root / output)}"


def _start(target: Target) -> Journal:
    """A new journal, once it is certain that no scheduler works in the same folder."""
    digest, local = digest_at(target), LocalScheduler()
    earlier = read_journal(target.run)
    if earlier is not None and earlier.scheduler != local.name:
        refuse_other_work(earlier, live_jobs(target, earlier, local), digest=digest, scheduler=local.name)
    start_afresh(target.run)
    return Journal(
        plan=target.plan.name,
        build=os.path.relpath(target.folder, target.root),
        root=os.path.relpath(target.root, target.run),
        digest=digest,
        scheduler=local.name,
        submitted=now(),
        steps={step.name: JournalStep(job=str(os.getpid())) for step in target.plan.steps},
    )


def _reason_to_run(step: BuiltStep, run: Path, root: Path, ran: set[str], *, forced: bool) -> str | None:
    if forced:
        return "asked for with --from"
    for need in step.needs:
        if need in ran:
            return f"{need} ran again"
    return why_stale(read_receipt(run, step.name), job_path=root / step.job_path, root=root)


def _run_step(step: BuiltStep, target: Target, journal: Journal, reason: str) -> None:
    root, run = target.root, target.run
    log = run / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    (run / "heartbeat.json").unlink(missing_ok=True)
    shown = os.path.relpath(log, root)
    journal.record(run, step.name, state="running", reason=reason, started=now(), log=shown)
    earlier = log.stat().st_size if log.exists() else 0
    with log.open("ab") as stream:
        process = subprocess.Popen(
            ["bash", str(target.folder / "torchrun" / "run.sh"), step.name],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
        try:
            with _terminate_as_interrupt(), Watcher(step.name, step.title, run) as watcher:
                code = watcher.wait(process)
        except KeyboardInterrupt:
            code = _stop(process, run)
            if code != 0 or read_receipt(run, step.name) is None:
                raise _interrupted(step, run, journal, code) from None
    if code == ExitCode.INTERRUPTED or (read_receipt(run, step.name) is None and _saved(run, step.name)):
        raise _interrupted(step, run, journal, code)
    if code != 0:
        journal.record(run, step.name, state="failed", ended=now(), exit_code=code)
        tail = log.read_bytes()[earlier:].decode("utf-8", "replace").rstrip().splitlines()[-20:]
        known = ExitCode(code) if code in {known.value for known in ExitCode} else ExitCode.INTERNAL
        raise StepError(
            f"{step.name} failed with exit code {code}; the end of its log:\n" + "\n".join(f"    {t}" for t in tail),
            code=known,
            path=os.path.relpath(log),
        )
    if read_receipt(run, step.name) is None:
        journal.record(run, step.name, state="failed", reason="ended without a receipt", ended=now(), exit_code=0)
        raise StepError(f"{step.name} ended without a receipt", code=ExitCode.INTERNAL, path=os.path.relpath(log))
    journal.record(run, step.name, state="done", ended=now(), exit_code=0)


def _interrupted(step: BuiltStep, run: Path, journal: Journal, code: int) -> StepError:
    state = read_state(run, step.name)
    kept = f" after {state.done} of {state.total}, which is saved" if state and state.phase == "interrupted" else ""
    journal.record(run, step.name, state="interrupted", ended=now(), exit_code=code)
    return StepError(
        f"{step.name} was interrupted{kept}",
        code=ExitCode.INTERRUPTED,
        help="`higgsc run` again takes it up",
    )


def _saved(run: Path, step: str) -> bool:
    state = read_state(run, step)
    return state is not None and state.phase == "interrupted"


def _environment() -> dict[str, str]:
    """This environment, with `python` being the one that runs this program."""
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def _stop(process: subprocess.Popen[bytes], run: Path) -> int:
    """Ask the step to save and end (`run.sh` waits for it); insist on a second Ctrl-C, or when it takes too long."""
    request_stop(run)
    os.killpg(process.pid, signal.SIGTERM)
    print("stopping; a second Ctrl-C does not wait for the checkpoint", file=sys.stderr, flush=True)
    try:
        return process.wait(SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the step is stopped and the journal says so."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _refuse_what_needs_a_cluster(plan: BuiltPlan) -> None:
    for step in plan.steps:
        if step.resources.nodes > 1:
            raise StepError(
                f"step {step.name} of {plan.name} needs {step.resources.nodes} nodes ({plan.hardware}); this is one",
                code=ExitCode.USAGE,
                help=f"`higgsc submit --scheduler slurm`, or change `hardware` in {plan.spec}",
            )


def _summary(run: Path, step: str) -> str:
    receipt = read_receipt(run, step)
    return receipt.summary if receipt else ""


def _seconds(run: Path, step: str) -> float:
    receipt = read_receipt(run, step)
    return receipt.seconds if receipt else 0.0
