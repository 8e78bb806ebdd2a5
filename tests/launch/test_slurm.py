"""`submit`, `status`, `logs` and `cancel` on a real Slurm, with steps that take a moment."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from higgsc.contract.outcome import ExitCode
from higgsc.launch.built import Target, open_build
from higgsc.launch.scheduler import Submission, UnreachableError
from higgsc.launch.slurm import client
from higgsc.launch.slurm.client import Answer
from higgsc.launch.slurm.scheduler import SlurmScheduler
from higgsc.launch.submit import submit
from tests.launch.conftest import SPEC, Project, make_project
from tests.slurm.cluster import Cluster

BUILD = "generated/t"


def jobs_of(project: Project, cluster: Cluster) -> list[str]:
    """Every job that Slurm remembers of this project."""
    lines = cluster.run("scontrol", "show", "job", "--oneliner").splitlines()
    return [line.split()[0] for line in lines if f"WorkDir={project.root} " in line]


def test_a_chain_runs_to_its_end_and_is_not_submitted_again(on_cluster: Project, cluster: Cluster) -> None:
    first = on_cluster.higgsc("submit", BUILD)
    assert first.returncode == 0, first.stderr
    table = [line.split() for line in first.stdout.splitlines()[1:4]]
    assert [row[0] for row in table] == ["prepare", "train", "merge"]
    assert all(row[1].isdecimal() and row[2] == "submitted" for row in table)
    assert "starts after train" in first.stdout
    assert on_cluster.until_over() == {"prepare": "done", "train": "done", "merge": "done"}
    again = on_cluster.json("submit", BUILD)["runs"][0]["steps"]
    assert {step["action"] for step in again} == {"done before"}
    assert len(jobs_of(on_cluster, cluster)) == 3
    assert "merge did it" in on_cluster.higgsc("status").stdout
    logs = on_cluster.higgsc("logs", "t", "--step", "train").stdout.splitlines()
    assert logs[-1] == "hello from train"


def test_a_second_submit_finds_what_is_at_work_and_two_at_once_submit_once(
    on_cluster: Project, cluster: Cluster
) -> None:
    on_cluster.behave(prepare={"steps": 40})
    argv = [sys.executable, "-m", "higgsc", "submit", BUILD, "--json"]
    both = [
        subprocess.Popen(argv, cwd=on_cluster.root, env=on_cluster.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=60)[0])["runs"][0]["steps"] for process in both]
    actions = sorted(steps[0]["action"] for steps in answers)
    assert actions == ["at work", "submitted"]
    assert [step["job"] for step in answers[0]] == [step["job"] for step in answers[1]]
    assert len(jobs_of(on_cluster, cluster)) == 3
    on_cluster.higgsc("cancel", "t", "--wait", "20")


class _Dying(SlurmScheduler):
    """A client that is killed when `sbatch` has answered and nobody has noted it yet."""

    def _submit(self, target: Target, submission: Submission, jobs: Mapping[str, str]) -> str:
        super()._submit(target, submission, jobs)
        raise KeyboardInterrupt


def test_a_client_that_died_between_sbatch_and_the_journal_leaves_no_duplicate(
    on_cluster: Project, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    on_cluster.behave(prepare={"steps": 40})
    target = open_build(on_cluster.build)
    with pytest.raises(KeyboardInterrupt):
        submit(target, _Dying(retry_for=5))
    assert on_cluster.journal()["steps"]["prepare"]["state"] == "submitting"
    assert on_cluster.states()["prepare"] == "unknown"
    rows = submit(target, SlurmScheduler(retry_for=5))
    assert [row.action for row in rows] == ["found", "submitted", "submitted"]
    assert len(jobs_of(on_cluster, cluster)) == 3
    on_cluster.higgsc("cancel", "t", "--wait", "20")


def test_an_answer_that_is_lost_is_no_reason_to_submit_twice(
    on_cluster: Project, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    lost = []

    def call(*argv: str, **options: object) -> Answer:
        answer = client.call(*argv, **options)  # type: ignore[arg-type]
        if "--parsable" in argv and not lost:
            lost.append(answer.stdout.strip())
            raise UnreachableError("Socket timed out on send/recv operation")
        return answer

    monkeypatch.setattr("higgsc.launch.slurm.scheduler.call", call)
    on_cluster.behave(prepare={"steps": 40})
    rows = submit(open_build(on_cluster.build), SlurmScheduler(retry_for=20))
    assert rows[0].job == lost[0]
    assert len(jobs_of(on_cluster, cluster)) == 3
    on_cluster.higgsc("cancel", "t", "--wait", "20")


@pytest.mark.slow  # Slurm's commands take up to 20 s to give up
def test_without_slurmctld_submit_gives_up_in_time_and_loses_nothing(on_cluster: Project, cluster: Cluster) -> None:
    cluster.controller_down()
    try:
        result = on_cluster.higgsc("submit", BUILD, "--retry-for", "0")
        assert result.returncode == ExitCode.SCHEDULER_UNREACHABLE
        assert "nothing is submitted twice" in result.stderr
        threading.Timer(2.0, cluster.controller_up).start()
        again = on_cluster.higgsc("submit", BUILD, "--retry-for", "60")
    finally:
        if (
            "UP"
            not in subprocess.run(
                ["scontrol", "ping"], env={**on_cluster.environment}, capture_output=True, text=True, check=False
            ).stdout
        ):
            cluster.controller_up()
    assert again.returncode == 0, again.stderr
    assert set(on_cluster.until_over().values()) == {"done"}
    assert len(jobs_of(on_cluster, cluster)) == 3


def test_cancel_saves_the_running_step_and_takes_out_those_that_wait(on_cluster: Project, cluster: Cluster) -> None:
    on_cluster.behave(train={"steps": 600})
    on_cluster.higgsc("submit", BUILD)
    on_cluster.until(lambda: (on_cluster.run / "state" / "train").exists())
    status = on_cluster.json("status", "t")["runs"][0]["steps"][1]
    assert status["state"] == "running"
    assert status["progress"]["loss"] == 2.5
    result = on_cluster.higgsc("cancel", "t", "--wait", "30")
    assert result.returncode == 0, result.stderr
    assert "saved and ended" in result.stdout
    assert "taken out of the queue" in result.stdout
    assert on_cluster.states() == {"prepare": "done", "train": "cancelled", "merge": "cancelled"}
    assert (on_cluster.run / "state" / "train").read_text().startswith("interrupted ")
    assert on_cluster.higgsc("cancel", "t").stdout == "t: nothing is queued or running\n"
    # and it is taken up where it was
    done = int((on_cluster.run / "state" / "train").read_text().split()[1])
    on_cluster.behave(train={"steps": done + 3})
    on_cluster.higgsc("submit", BUILD)
    assert set(on_cluster.until_over().values()) == {"done"}
    assert on_cluster.journal()["steps"]["train"]["attempt"] == 2


def test_a_failing_step_ends_those_after_it_and_is_submitted_again_when_mended(
    on_cluster: Project, cluster: Cluster
) -> None:
    on_cluster.behave(train={"exit": 65})
    on_cluster.higgsc("submit", BUILD)
    assert on_cluster.until_over() == {"prepare": "done", "train": "failed", "merge": "cancelled"}
    assert "the cause of the failure" in on_cluster.higgsc("logs", "t").stdout
    on_cluster.behave()
    steps = on_cluster.json("submit", BUILD)["runs"][0]["steps"]
    assert [step["action"] for step in steps] == ["done before", "submitted", "submitted"]
    assert set(on_cluster.until_over().values()) == {"done"}


def test_a_chain_of_jobs_is_one_step(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On clusters without requeueing: a link takes up what the one before it has left, and is found if it is there."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    project = make_project(tmp_path, cluster.env, f"{SPEC}site: {{chain: 3}}\n")
    project.behave(train={"steps": 400})
    steps = project.json("submit", BUILD)["runs"][0]["steps"]
    links = steps[1]["job"].split(",")
    assert len(links) == 3
    assert len(jobs_of(project, cluster)) == 5
    project.until(lambda: (project.run / "state" / "train").exists())
    # A submit that lost its notes finds every link.
    journal = project.journal()
    for step in journal["steps"].values():
        step.update(state="submitting", job=None)
    (project.run / "journal.json").write_text(json.dumps(journal))
    again = project.json("submit", BUILD)["runs"][0]["steps"]
    assert again[1]["job"].split(",") == links
    assert len(jobs_of(project, cluster)) == 5
    # The first link is stopped, as by its time limit; the second goes on and ends.
    done = int((project.run / "state" / "train").read_text().split()[1])
    project.behave(train={"steps": done + 30})
    cluster.run("scancel", "--signal=USR1", "--batch", links[0])
    assert set(project.until_over().values()) == {"done"}
    assert cluster.job(links[0])["ExitCode"] == "75:0"
    assert "saved at" in project.higgsc("logs", "t", "--step", "train").stdout


def test_logs_follow_a_run_and_end_with_it(on_cluster: Project) -> None:
    on_cluster.behave(train={"steps": 15})
    on_cluster.higgsc("submit", BUILD)
    result = on_cluster.higgsc("logs", "-f", "t")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith(("==", "hello"))]
    assert [line.split()[2] for line in lines] == ["prepare", "prepare", "train", "train", "merge", "merge"]
    assert set(on_cluster.states().values()) == {"done"}
    rows = [json.loads(line) for line in on_cluster.higgsc("logs", "t", "--json", "-n", "1").stdout.splitlines()]
    assert [(row["step"], row["line"]) for row in rows] == [
        (name, f"hello from {name}") for name in ("prepare", "train", "merge")
    ]


def test_a_changed_spec_does_not_replace_the_build_under_a_running_job(on_cluster: Project) -> None:
    on_cluster.behave(prepare={"steps": 100})
    on_cluster.higgsc("submit", BUILD)
    spec = on_cluster.root / "spec.yaml"
    spec.write_text(SPEC.replace("steps: 9", "steps: 10"))
    before = (on_cluster.build / "jobs" / "train.json").read_text()
    for command in ("submit", "run"):
        result = on_cluster.higgsc(command, "spec.yaml")
        assert result.returncode == ExitCode.DIAGNOSTICS
        assert "still at work: prepare (" in result.stderr
    assert (on_cluster.build / "jobs" / "train.json").read_text() == before
    local = on_cluster.higgsc("run", BUILD)
    assert "at work on slurm already" in local.stderr
    on_cluster.higgsc("cancel", "t", "--wait", "20")


@pytest.mark.parametrize(
    "line, place, said",
    [
        ("site: {partition: debgu}", "spec.yaml:8:19", "did you mean `debug`?"),
        ("site: {cpus_per_node: 99}", "spec.yaml:8:23", "write `cpus_per_node: 8`"),
    ],
)
def test_what_sbatch_refuses_is_said_at_the_line_of_the_spec(
    cluster: Cluster, tmp_path: Path, line: str, place: str, said: str
) -> None:
    project = make_project(tmp_path, cluster.env, f"{SPEC}{line}\n")
    result = project.higgsc("submit", "spec.yaml", "--force")
    assert result.returncode == ExitCode.DIAGNOSTICS
    assert "error[HC601]" in result.stderr
    assert place in result.stderr
    assert said in result.stderr
    assert jobs_of(project, cluster) == []


def test_a_secret_of_the_submitter_reaches_no_file(on_cluster: Project, cluster: Cluster) -> None:
    canary = "canary-7d1f3a9c"
    on_cluster.behave(prepare={"steps": 60})
    result = on_cluster.higgsc("submit", BUILD, HF_TOKEN=canary, SBATCH_EXPORT="ALL")
    assert result.returncode == 0, result.stderr
    for folder in (cluster.root / "state", cluster.root / "log", on_cluster.run):
        for path in folder.rglob("*"):
            assert not path.is_file() or canary.encode() not in path.read_bytes(), path
    on_cluster.higgsc("cancel", "t", "--wait", "20")


def test_doctor_compares_the_spec_with_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    spec = SPEC.replace("hardware: 1xCPU", "hardware: 2x4xH100").replace("samples: 4", "samples: 32")
    project = make_project(tmp_path, cluster.env, f"{spec}site: {{partition: scavenge, cpus_per_node: 9}}\n")
    result = project.higgsc("doctor", "spec.yaml")
    assert result.returncode == ExitCode.DIAGNOSTICS
    assert "4×H100 per node are asked for; partition `scavenge`: its nodes have 2×h200" in result.stdout
    assert "write `cpus_per_node: 8`" in result.stdout
    assert "--> spec.yaml:5:11" in result.stdout
    assert "KillWait is 10 s" in result.stdout
    document = json.loads(project.higgsc("doctor", "spec.yaml", "--json").stdout)
    assert document["errors"] == 2
    assert document["slurm"] in result.stdout
