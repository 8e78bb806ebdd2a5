"""The picture of a run, from what the scheduler says and what lies in its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from higgsc.cli.status import _lines
from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.outcome import ExitCode, StepError, StepResult
from higgsc.contract.receipts import write_receipt
from higgsc.contract.state import write_state
from higgsc.launch.built import Target, open_build
from higgsc.launch.folder import mark_cancelled
from higgsc.launch.journal import Journal, JournalStep, read_journal
from higgsc.launch.locate import targets
from higgsc.launch.scheduler import JobStatus, Scheduler, scheduler_named
from higgsc.launch.status import RunStatus, status_of
from tests.launch.conftest import Project


class Said:
    """A scheduler that says what it is told to."""

    name = "slurm"

    def __init__(self, **states: JobStatus) -> None:
        self.told = states

    def states(self, target: Target, jobs: Mapping[str, str]) -> dict[str, JobStatus]:
        return {step: self.told.get(step, JobStatus(phase="waiting", word="PENDING")) for step in jobs}


def look(project: Project, *, entry: str = "submitted", job: str | None = "4813", **states: JobStatus) -> RunStatus:
    steps = {
        name: JournalStep(state=entry, job=job, key="higgsc:aa", attempt=1)  # type: ignore[arg-type]
        for name in ("prepare", "train", "merge")
    }
    Journal(
        plan="t",
        build="generated/t",
        root="../..",
        digest="d",
        scheduler="slurm",
        submitted=datetime.now().astimezone().isoformat(),
        steps=steps,
    ).save(project.run)
    return status_of(open_build(project.build), cast(Scheduler, Said(**states)))


def finish(project: Project, step: str) -> None:
    result = StepResult(summary=f"{step} did it", inputs=(project.root / "data.txt",))
    write_receipt(
        project.run, step, result, job_path=project.build / f"jobs/{step}.json", root=project.root, seconds=61
    )


def ended(phase: str, word: str, reason: str | None = None) -> JobStatus:
    return JobStatus(phase=phase, word=word, reason=reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "job, saved, state, reason",
    [
        (ended("waiting", "PENDING", "Resources"), False, "waiting", "Resources"),
        (JobStatus(phase="waiting", word="PENDING", reason="BeginTime", restarts=2), True, "requeued", "BeginTime"),
        (ended("running", "RUNNING"), False, "running", None),
        (ended("done", "COMPLETED"), False, "failed", "ended without a receipt"),
        (ended("done", "COMPLETED"), True, "interrupted", None),
        (ended("failed", "FAILED", "NonZeroExitCode"), False, "failed", "NonZeroExitCode"),
        (ended("failed", "FAILED", "NonZeroExitCode"), True, "interrupted", "NonZeroExitCode"),
        (ended("failed", "TIMEOUT", "TimeLimit"), True, "interrupted", "timeout"),
        (ended("failed", "OUT_OF_MEMORY"), False, "failed", "out of memory"),
        (ended("cancelled", "CANCELLED"), False, "cancelled", None),
        (ended("cancelled", "CANCELLED", "Dependency"), False, "cancelled", "a step before it did not succeed"),
        (ended("unknown", "EXPEDITING"), False, "unknown", None),
    ],
)
def test_every_state_of_a_job(project: Project, job: JobStatus, saved: bool, state: str, reason: str | None) -> None:
    if saved:
        write_state(project.run, "train", "interrupted", 120, 300)
    status = look(project, train=job)
    train = status.steps[1]
    assert (train.state, train.reason) == (state, reason)
    assert train.saved == ("120/300" if saved else None)
    assert any(line.split()[:2] == ["train", state] for line in _lines(status))


def test_a_receipt_is_the_truth_and_a_stale_one_is_none(project: Project) -> None:
    finish(project, "train")
    lost = ended("unknown", "UNKNOWN", "Slurm does not know the job any more")
    train = look(project, train=lost).steps[1]
    assert (train.state, train.summary, train.seconds) == ("done", "train did it", 61)
    (project.root / "data.txt").write_text("other data")
    assert look(project, train=lost).steps[1].state == "unknown"


def test_a_job_at_work_wins_over_the_receipt_of_an_earlier_one(project: Project) -> None:
    finish(project, "train")
    assert look(project, train=ended("running", "RUNNING")).steps[1].state == "running"


def test_a_cancelled_run_says_so_and_what_it_has_kept(project: Project) -> None:
    write_state(project.run, "train", "interrupted", 120, 300)
    project.run.mkdir(exist_ok=True)
    mark_cancelled(project.run)
    status = look(project, train=ended("failed", "FAILED", "NonZeroExitCode"))
    assert status.cancelled
    assert status.steps[1].state == "cancelled"
    assert "saved at 120/300" in "\n".join(_lines(status))


def test_progress_has_loss_pace_and_the_time_left(project: Project) -> None:
    start = time.time() - 100
    heartbeat = HeartbeatWriter(project.run, "train", unit="steps", total=150)
    heartbeat.beat(50, "loss 2.41", force=True, loss=2.41, tokens_per_second=44800.0, eta=100.0)
    running = JobStatus(phase="running", word="RUNNING", started=start, restarts=1, nodes="node[1-2]")
    status = look(project, prepare=ended("done", "COMPLETED"), train=running)
    progress = status.steps[1].progress
    assert progress is not None
    assert progress.eta == pytest.approx(100.0, abs=1)
    (line,) = (line for line in _lines(status) if line.split()[0] == "train")
    for part in ("step 50/150", "33%", "audio loss 2.41", "44.8k tok/s", "ETA 100 s", "restarts 1", "on node[1-2]"):
        assert part in line
    assert "silent" not in line
    json.dumps(status.document())


def test_a_training_on_several_processes_says_how_they_share_it(project: Project) -> None:
    running = ended("running", "RUNNING")
    assert look(project, train=running).steps[1].mesh is None  # it is alone
    plan_file, job_file = project.build / "plan.json", project.build / "jobs" / "train.json"
    plan, job = json.loads(plan_file.read_text()), json.loads(job_file.read_text())
    plan["steps"][1]["resources"] |= {"nodes": 2, "processes_per_node": 8}
    job["mesh"] |= {"replicate": 1, "shard": 8, "tensor": 2, "sequence": True}
    plan_file.write_text(json.dumps(plan))
    job_file.write_text(json.dumps(job))
    status = look(project, train=running)
    assert [step.mesh for step in status.steps] == [None, "2x8, replicate 1 × shard 8 × tensor 2 with sequence", None]
    (line,) = (line for line in _lines(status) if line.split()[0] == "train")
    assert line.endswith("2x8, replicate 1 × shard 8 × tensor 2 with sequence")
    job_file.write_text("{}")
    assert look(project, train=running).steps[1].mesh is None


def test_a_step_that_is_silent_is_named(project: Project) -> None:
    HeartbeatWriter(project.run, "train", unit="steps", total=150).beat(50, force=True)
    beat = json.loads((project.run / "heartbeat.json").read_text())
    (project.run / "heartbeat.json").write_text(json.dumps({**beat, "time": beat["time"] - 3600}))
    lines = _lines(look(project, train=ended("running", "RUNNING")))
    assert any("silent for 60 min" in line for line in lines)


def test_a_submit_without_an_answer_and_no_submit_at_all(project: Project) -> None:
    status = look(project, entry="submitting", job=None)
    assert {step.state for step in status.steps} == {"unknown"}
    assert "submitting again finds the job" in (status.steps[0].reason or "")
    (project.run / "journal.json").unlink()
    status = status_of(open_build(project.build), None)
    assert {step.state for step in status.steps} == {"not submitted"}
    assert not status.live


def test_what_a_name_stands_for(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    assert targets(None) == []
    with pytest.raises(StepError, match="no run below runs/") as caught:
        targets(Path("tt"))
    assert caught.value.code == ExitCode.MISSING_INPUT
    look(project)
    for name in ("t", "runs/t", "generated/t", str(project.run)):
        (target,) = targets(Path(name))
        assert target.run == project.run
    assert [target.run for target in targets(None)] == [project.run]


def test_a_journal_of_another_version_is_refused(project: Project) -> None:
    project.run.mkdir(parents=True)
    (project.run / "journal.json").write_text('{"schema": "higgsc.journal/v0"}')
    with pytest.raises(StepError, match="not a journal of this version"):
        read_journal(project.run)


def test_an_unknown_scheduler_is_named_with_those_there_are() -> None:
    with pytest.raises(StepError, match="no scheduler `slrum`; there are slurm, local") as caught:
        scheduler_named("slrum")
    assert caught.value.code == ExitCode.USAGE


def test_a_run_on_this_machine_in_the_background(project: Project) -> None:
    """`--scheduler local`: the same commands, the same answers."""
    project.behave(train={"steps": 400})
    first: dict[str, Any] = project.json("submit", "generated/t", "--scheduler", "local")["runs"][0]
    assert {step["action"] for step in first["steps"]} == {"submitted"}
    project.until(lambda: (project.run / "state" / "train").exists())
    assert project.states()["train"] == "running"
    again = project.higgsc("submit", "generated/t", "--scheduler", "local")
    assert "working in this folder" in again.stderr
    result = project.higgsc("cancel", "t", "--wait", "30")
    assert "saved" in result.stdout
    assert project.states() == {"prepare": "done", "train": "cancelled", "merge": "cancelled"}
    done = int((project.run / "state" / "train").read_text().split()[1])
    project.behave(train={"steps": done + 2})
    project.higgsc("submit", "generated/t", "--scheduler", "local")
    logs = project.higgsc("logs", "-f", "t").stdout
    assert "hello from merge" in logs
    assert set(project.states().values()) == {"done"}
