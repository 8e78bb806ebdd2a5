"""What happens to a run, and what the emitted scripts make of it: a stand-in step on a real cluster."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.project import Project, until

COUNTING = {"train": {"steps": 60, "seconds": 0.1}}
AGENTS = {"launcher": "torchrun"}
TASKS = {"launcher": "srun"}


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Project:
    return Project(cluster, tmp_path)


def warn(project: Project, job: str) -> None:
    """What Slurm sends the batch shell before the time limit."""
    project.cluster.run("scancel", "--signal=USR1", "--batch", job)


def test_the_chain_runs_to_its_end(project: Project) -> None:
    project.write(TASKS)
    jobs = project.submit()
    assert list(jobs) == ["prepare", "train", "merge", "evaluate"]
    project.cluster.wait(jobs["evaluate"], "COMPLETED")
    ranks = sorted(line.split(": ")[1] for line in project.log(jobs["train"]).splitlines())
    assert ranks == [f"train rank {rank} of 4 on node{1 + rank // 2}" for rank in range(4)]
    assert "rank 0 of 1" in project.log(jobs["merge"], "merge")


@pytest.mark.parametrize("site", [AGENTS, TASKS], ids=["torchrun", "srun"])
def test_a_warning_before_the_time_limit_saves_requeues_and_goes_on(project: Project, site: dict[str, str]) -> None:
    project.write(site, behaviour=COUNTING)
    job = project.sbatch("train")
    until(lambda: len(project.steps()) > 5)
    warn(project, job)
    project.cluster.wait(job, "COMPLETED")
    assert project.cluster.job(job)["Restarts"] == "1"
    assert project.steps() == list(range(1, 61))
    assert project.state() == ["done", "60", "60"]
    assert not (project.run / "stop").exists()


def test_the_time_limit_itself(project: Project) -> None:
    project.write(TASKS, behaviour={"train": {"steps": 300, "seconds": 0.1}})
    job = project.sbatch("train", "--time=1", "--signal=B:USR1@45")  # a minute is the least that Slurm knows
    project.cluster.wait(job, "COMPLETED", timeout=90)
    assert int(project.cluster.job(job)["Restarts"]) >= 1
    assert project.steps() == list(range(1, 301))


def test_no_progress_is_no_reason_to_queue_again(project: Project) -> None:
    project.write(TASKS, behaviour={"train": {"steps": 60, "seconds": 0.1, "forgets": True}})
    job = project.sbatch("train")
    until(lambda: len(project.steps()) > 3)
    warn(project, job)
    assert project.cluster.wait(job, "FAILED")["ExitCode"] == "75:0"
    assert "no progress since 0: not queueing again" in project.log(job)


def test_the_number_of_requeues_has_a_limit(project: Project) -> None:
    project.write({**TASKS, "max_requeues": 1}, behaviour=COUNTING)
    job = project.sbatch("train")
    for counted in (5, 10):
        until(lambda counted=counted: len(project.steps()) > counted)  # type: ignore[misc]
        warn(project, job)
        until(lambda: project.state()[0] == "interrupted")
        until(lambda: project.state()[0] == "running" or project.cluster.job(job)["JobState"] == "FAILED")
    assert project.cluster.wait(job, "FAILED")["ExitCode"] == "75:0"
    assert "restarted 1 times, which is the limit" in project.log(job)


def test_a_killed_rank_ends_the_job_and_what_depends_on_it(project: Project) -> None:
    project.write(AGENTS, behaviour={"train": {**COUNTING["train"], "timeout": 60}})
    jobs = project.submit()
    until(lambda: len(project.steps()) > 3)
    os.kill(project.pid(3), signal.SIGKILL)
    killed = time.monotonic()
    project.cluster.wait(jobs["train"], "FAILED")
    assert time.monotonic() - killed < 15
    for step in ("merge", "evaluate"):
        project.cluster.wait(jobs[step], "CANCELLED")
    for rank in range(4):
        until(lambda rank=rank: not Path(f"/proc/{project.pid(rank)}").exists(), timeout=5)  # type: ignore[misc]


def test_a_rank_that_hangs_ends_the_job(project: Project) -> None:
    project.write(AGENTS, behaviour={"train": {"steps": 600, "seconds": 0.05, "timeout": 4}})
    job = project.sbatch("train")
    until(lambda: len(project.steps()) > 3)
    os.kill(project.pid(2), signal.SIGSTOP)
    stopped = time.monotonic()
    project.cluster.wait(job, "FAILED", timeout=45)
    assert time.monotonic() - stopped < 40


def test_a_failing_step_cancels_what_depends_on_it(project: Project) -> None:
    project.write(TASKS, behaviour={"prepare": {"exit": 65}})
    jobs = project.submit()
    assert project.cluster.wait(jobs["prepare"], "FAILED")["ExitCode"] == "65:0"
    for step in ("train", "merge", "evaluate"):
        project.cluster.wait(jobs[step], "CANCELLED")


def test_a_power_cut_requeues_and_goes_on_from_what_was_saved(project: Project) -> None:
    project.write(TASKS, behaviour={"train": {"steps": 60, "seconds": 0.1, "save_every": 10}})
    job = project.sbatch("train")
    until(lambda: len(project.steps()) > 12)
    try:
        project.cluster.node_kill("node1")
        project.cluster.wait(job, "PENDING")
    finally:
        project.cluster.node_up("node1")
    project.cluster.wait(job, "COMPLETED")
    steps = project.steps()
    resumed = next(index for index in range(1, len(steps)) if steps[index] != steps[index - 1] + 1)
    assert steps[resumed] % 10 == 1  # the first one after a save
    assert steps[resumed:] == list(range(steps[resumed], 61))


def test_preemption_saves_and_comes_back(project: Project) -> None:
    project.write({**TASKS, "partition": "scavenge"}, behaviour=COUNTING)
    job = project.sbatch("train")
    until(lambda: len(project.steps()) > 5)
    winner = project.cluster.run(
        "sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
    ).strip()
    project.cluster.wait(winner, "COMPLETED")
    project.cluster.wait(job, "COMPLETED")
    assert project.steps() == list(range(1, 61))


@pytest.mark.parametrize("site", [AGENTS, TASKS], ids=["torchrun", "srun"])
def test_scancel_saves_and_stays_cancelled(project: Project, site: dict[str, str]) -> None:
    project.write(site, behaviour=COUNTING)
    jobs = project.submit()
    until(lambda: len(project.steps()) > 5)
    project.cluster.run("scancel", jobs["train"])
    project.cluster.wait(jobs["train"], "CANCELLED")
    for step in ("merge", "evaluate"):
        project.cluster.wait(jobs[step], "CANCELLED")
    until(lambda: project.state()[0] == "interrupted", timeout=10)
    assert project.state() == ["interrupted", str(project.steps()[-1]), "60"]
    again = project.sbatch("train")
    project.cluster.wait(again, "COMPLETED")
    assert project.steps() == list(range(1, 61))


def test_a_request_to_cancel_is_no_requeue(project: Project) -> None:
    project.write(TASKS, behaviour=COUNTING)
    job = project.sbatch("train")
    until(lambda: len(project.steps()) > 5)
    (project.run / "cancelled").touch()
    (project.run / "stop").touch()
    assert project.cluster.wait(job, "FAILED")["ExitCode"] == "75:0"
    assert project.state()[0] == "interrupted"
    again = project.sbatch("train")
    assert project.cluster.wait(again, "FAILED")["ExitCode"] == "75:0"
    assert "this run was cancelled" in project.log(again)


def test_two_runs_on_the_same_nodes_do_not_meet(cluster: Cluster, tmp_path: Path) -> None:
    projects = [Project(cluster, tmp_path / name) for name in ("one", "two")]
    for project in projects:
        project.write(AGENTS, behaviour={"train": {"steps": 20, "seconds": 0.05, "timeout": 30}})
    jobs = [project.sbatch("train") for project in projects]
    for project, job in zip(projects, jobs, strict=True):
        cluster.wait(job, "COMPLETED")
        assert project.steps() == list(range(1, 21))


def test_a_chain_goes_on_where_the_job_before_it_stopped(project: Project) -> None:
    project.write({**TASKS, "chain": 3}, behaviour=COUNTING)
    jobs = project.submit()
    first = str(int(jobs["train"]) - 2)
    until(lambda: len(project.steps()) > 5)
    warn(project, first)
    assert project.cluster.wait(first, "FAILED")["ExitCode"] == "75:0"
    project.cluster.wait(jobs["evaluate"], "COMPLETED")
    assert project.steps() == list(range(1, 61))
