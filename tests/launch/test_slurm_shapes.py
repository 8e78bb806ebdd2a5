"""Slurm 21 to 25 say the same in different words: documents of several versions, and commands that only print them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import open_build
from higgsc.launch.scheduler import RefusedError, UnreachableError
from higgsc.launch.slurm import parse
from higgsc.launch.slurm.client import environment, environment_to_submit
from higgsc.launch.slurm.scheduler import SlurmScheduler, create
from higgsc.launch.submit import submit
from tests.launch.conftest import Project


def number(value: int | None) -> dict[str, Any]:
    """A number as 23.02 and later write it."""
    return {"set": value is not None, "infinite": False, "number": value or 0}


OLD = {
    "array_job_id": 0,
    "comment": "higgsc:aa",
    "end_time": 0,
    "job_id": 7,
    "job_state": "PENDING",
    "nodes": "",
    "restart_cnt": 2,
    "start_time": 1795272884,
    "state_reason": "Resources",
}
NEW = {
    **OLD,
    "array_job_id": number(0),
    "end_time": number(None),
    "job_state": ["PENDING"],
    "start_time": number(1795272884),
}


@pytest.mark.parametrize("row", [OLD, NEW, {**NEW, "comment": {"administrator": "", "job": "higgsc:aa", "system": ""}}])
def test_squeue_json_of_old_and_new_versions_means_the_same(row: dict[str, Any]) -> None:
    (job,) = parse.from_squeue(json.dumps({"errors": [], "jobs": [row]}))
    assert (job.id, job.comment) == ("7", "higgsc:aa")
    assert job.status.phase == "waiting"
    assert job.status.reason == "Resources"
    assert job.status.expected_start == 1795272884
    assert job.status.started is None
    assert job.status.restarts == 2


@pytest.mark.parametrize(
    "words, phase, word",
    [
        ("RUNNING", "running", "RUNNING"),
        (["RUNNING", "COMPLETING"], "running", "RUNNING"),
        (["COMPLETED", "COMPLETING"], "running", "COMPLETING"),
        (["RUNNING", "REQUEUED"], "waiting", "REQUEUED"),
        (["PENDING", "REQUEUED"], "waiting", "PENDING"),
        (["NODE_FAIL"], "failed", "NODE_FAIL"),
        (["CANCELLED"], "cancelled", "CANCELLED"),
        (["COMPLETED"], "done", "COMPLETED"),
        (["EXPEDITING"], "unknown", "EXPEDITING"),
        ([], "unknown", "UNKNOWN"),
    ],
)
def test_states_of_one_and_of_several_words(words: str | list[str], phase: str, word: str) -> None:
    (job,) = parse.from_squeue(json.dumps({"jobs": [{**NEW, "job_state": words}]}))
    assert (job.status.phase, job.status.word) == (phase, word)


def test_an_error_inside_the_document_is_no_empty_queue() -> None:
    """22.05 exits with 0 when the controller does not answer."""
    said = {"errors": [{"description": "Failed while looking for jobs", "source": "slurm_load_jobs"}], "jobs": []}
    with pytest.raises(ConnectionError, match="Failed while looking for jobs"):
        parse.from_squeue(json.dumps(said))


SCONTROL = (
    "JobId=4813 JobName=arabic-train UserId=ada(1000) Priority=1 Account=(null) QOS=normal JobState=RUNNING "
    "Reason=None Dependency=(null) Requeue=1 Restarts=1 BatchFlag=1 RunTime=00:01:00 TimeLimit=1-00:00:00 "
    "StartTime=2026-11-21T14:54:44 EndTime=2026-11-22T14:54:44 NodeList=node[1-2] NumNodes=2 "
    "Command=/home/ada/my project/train.sbatch Comment=higgsc:bb Power= \n"
)


def test_scontrol_lines_are_split_at_keys_and_not_at_spaces() -> None:
    (job,) = parse.from_scontrol(SCONTROL)
    assert parse.pairs(SCONTROL)["Command"] == "/home/ada/my project/train.sbatch"
    assert (job.id, job.comment, job.status.phase) == ("4813", "higgsc:bb", "running")
    assert (job.status.restarts, job.status.nodes, job.status.ended) == (1, "node[1-2]", None)


def test_sacct_rows() -> None:
    text = "12|12|CANCELLED by 1000|2026-11-21T14:54:44|2026-11-21T14:55:44|node1\n14|13_4|TIMEOUT|Unknown|Unknown|\n"
    first, second = parse.from_sacct(text)
    assert (first.id, first.status.phase, first.status.reason) == ("12", "cancelled", "CANCELLED by 1000")
    assert (second.id, second.status.word, second.status.started) == ("13", "TIMEOUT", None)


class Stubs:
    """Commands on PATH that note their arguments and print what they are told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
        for name in ("sbatch", "squeue", "scontrol", "sacct", "sinfo", "sacctmgr", "scancel"):
            self.says(name, "", code=1, error=f"{name}: error: not here")

    def says(self, name: str, text: str, *, code: int = 0, error: str = "") -> None:
        path = self.folder / name
        (self.folder / f"{name}.out").write_text(text)
        (self.folder / f"{name}.err").write_text(error)
        path.write_text(
            f"#!/bin/bash\nprintf '%s\\n' \"{name} $*\" >> {self.folder}/calls\nenv > {self.folder}/{name}.env\n"
            f"cat {self.folder}/{name}.out\ncat {self.folder}/{name}.err >&2\nexit {code}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.split()[0] == name]


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    return Stubs(tmp_path / "bin", monkeypatch)


def test_a_dry_run_prints_exactly_what_a_submit_executes(project: Project, stubs: Stubs) -> None:
    target, slurm = open_build(project.build), SlurmScheduler(retry_for=0)
    stubs.says("squeue", '{"jobs": []}')
    stubs.says("sbatch", "7;cluster-a\n")
    dry = project.higgsc("submit", "generated/t", "--dry-run", PATH=os.environ["PATH"]).stdout.splitlines()
    assert dry[0] == f"cd {project.root}"
    assert not (project.run / "journal.json").exists()
    rows = submit(target, slurm)
    assert [row.job for row in rows] == ["7", "7", "7"]
    for step in ("prepare", "train"):
        dry = [line.replace(f"'--dependency=afterok:<{step}>'", "--dependency=afterok:7") for line in dry]
    assert dry[1:] == stubs.calls("sbatch")
    assert sum("--test-only" in line for line in dry) == 3


def test_a_squeue_without_json_is_read_as_a_list(project: Project, stubs: Stubs) -> None:
    """Slurm built without the serializer; the second format is asked for then."""
    stubs.says("squeue", "7|N/A|RUNNING|higgsc:aa\n8|N/A|PENDING|\n9|N/A|NEWSPEAK|higgsc:cc\n")
    target = open_build(project.build)
    slurm = SlurmScheduler(retry_for=0)
    assert slurm.find(target, ["higgsc:aa", "higgsc:bb"]) == {"higgsc:aa": "7"}
    found = slurm.states(target, {"prepare": "7", "train": "8", "merge": "9"})
    assert [found[name].phase for name in ("prepare", "train", "merge")] == ["running", "waiting", "unknown"]


def test_a_job_that_left_the_queue_is_asked_of_scontrol_then_of_sacct_then_unknown(
    project: Project, stubs: Stubs
) -> None:
    target, slurm = open_build(project.build), SlurmScheduler(retry_for=0)
    stubs.says("squeue", '{"jobs": []}')
    assert slurm.states(target, {"train": "7"})["train"].phase == "unknown"
    stubs.says("sacct", "7|7|OUT_OF_MEMORY|2026-11-21T14:54:44|2026-11-21T14:55:44|node1\n")
    assert slurm.states(target, {"train": "7"})["train"].word == "OUT_OF_MEMORY"
    stubs.says("scontrol", SCONTROL.replace("RUNNING", "NODE_FAIL"))
    assert slurm.states(target, {"train": "7"})["train"].word == "NODE_FAIL"


@pytest.mark.parametrize(
    "complaint, path",
    [
        ("sbatch: error: invalid partition specified: nope", "site.partition"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         "site.account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "site.qos"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
         "site.time_limit"),
        ("allocation failure: Invalid feature specification", "site.constraint"),
        ("allocation failure: Requested reservation is invalid", "site.reservation"),
        ("sbatch: error: Node count specification invalid", "hardware"),
        ("allocation failure: Requested node configuration is not available", "hardware"),
        ("sbatch: error: Memory specification can not be satisfied", "site.memory_per_node"),
        ("sbatch: error: Invalid generic resource (gres) specification", "hardware"),
        ("sbatch: error: something that nobody has heard of", None),
    ],
)  # fmt: skip
def test_complaints_are_about_values_of_the_spec(
    project: Project, stubs: Stubs, complaint: str, path: str | None
) -> None:
    stubs.says("squeue", '{"jobs": []}')
    stubs.says("sbatch", "", code=1, error=complaint)
    with pytest.raises(RefusedError) as caught:
        submit(open_build(project.build), SlurmScheduler(retry_for=0))
    assert caught.value.spec_path == path
    assert caught.value.step == "prepare"
    assert not (project.run / "journal.json").exists()


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.",
        "sbatch: fatal: Could not establish a configuration source",
        "sbatch: error: Munge encode failed: Failed to access socket",
    ],
)
def test_no_answer_is_exit_code_69(project: Project, stubs: Stubs, said: str) -> None:
    stubs.says("squeue", '{"jobs": []}')
    stubs.says("sbatch", "", code=1, error=said)
    with pytest.raises(UnreachableError) as caught:
        submit(open_build(project.build), SlurmScheduler(retry_for=0))
    assert caught.value.code == ExitCode.SCHEDULER_UNREACHABLE


def test_without_slurm_the_way_out_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StepError) as caught:
        SlurmScheduler(retry_for=0).find(open_build(project.build), ["higgsc:aa"])
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert "higgsc run" in str(caught.value)
    with pytest.raises(StepError, match="takes no argument"):
        create("here")


def test_the_environment_of_slurms_commands_holds_no_surprises(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_STATES", "SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SLURM_JOB_ID", "HF_TOKEN", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    asking = environment()
    assert asking["SLURM_CONF"] == "/etc/slurm.conf"
    assert not {"SQUEUE_STATES", "SLURM_JOB_ID"} & set(asking)
    submitting = environment_to_submit({"account": None})
    assert submitting["SLURM_CONF"] == "/etc/slurm.conf"
    assert not {"SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SLURM_JOB_ID", "HF_TOKEN"} & set(submitting)
    assert submitting["SBATCH_ACCOUNT"] == "x"
    assert "SBATCH_ACCOUNT" not in environment_to_submit({"account": "theirs"})
