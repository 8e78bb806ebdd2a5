"""`submit`, `status`, `logs` and `cancel` of a sweep on a real cluster: arrays that nobody has to know of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from higgsc.cli import group
from higgsc.launch.arrays import submit_sweep
from higgsc.launch.built import open_build
from higgsc.launch.slurm.scheduler import SlurmScheduler
from higgsc.launch.sweep import Handover, sweep_of
from higgsc.launch.sweep import Sweep as Points
from tests.slurm.cluster import Cluster
from tests.slurm.project import until
from tests.slurm.sweep import POINTS, SWEEP, Sweep

BUILD = "generated/t"
STEPS = ["prepare", "train", "merge", "evaluate"]
COUNTING = {"train": {"steps": 40, "seconds": 0.1}}


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep that this very process submits, as from its project's root."""
    found = Sweep(cluster, tmp_path)
    for name in ("PATH", "PYTHONPATH", "SLURM_CONF"):
        monkeypatch.setenv(name, found.env[name])
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text("[]")
    return found


def higgsc(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def document(*arguments: str) -> Any:
    return json.loads(higgsc(*arguments, "--json").stdout)["runs"]


def arrays_of(sweep: Sweep) -> set[str]:
    """Every job that Slurm remembers of this project; an array is one."""
    lines = sweep.cluster.run("scontrol", "show", "job", "--oneliner").splitlines()
    rows = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return {row.get("ArrayJobId", row["JobId"]) for row in rows if row["WorkDir"] == str(sweep.root)}


def forget(sweep: Sweep, *steps: str) -> None:
    """What a client leaves that died before it could note the answers."""
    for point in sweep.points:
        journal = json.loads((point.run / "journal.json").read_text())
        for step in steps:
            journal["steps"][step].update(state="submitting", job=None)
        (point.run / "journal.json").write_text(json.dumps(journal))


@pytest.mark.slow
def test_a_sweep_is_an_array_a_step_from_submit_to_the_last_receipt(sweep: Sweep) -> None:
    sweep.write({"launcher": "srun", "array_limit": 3}, SWEEP.replace("2x2xCPU", "1xCPU"), COUNTING)
    said = higgsc("submit", "spec.yaml").stdout
    train = json.loads((sweep.points[0].run / "journal.json").read_text())["steps"]["train"]["job"].partition("_")[0]
    assert f"train     {train}  3 of 3  submitted  starts after prepare" in said
    assert "next: higgsc status t   higgsc logs -f runs/t-learning_rate-1e-3   higgsc cancel t" in said
    arrays = arrays_of(sweep)
    assert len(arrays) == 4

    # Again, and again by one that has to look for every task: nothing is submitted twice.
    for action in ("at work", "found"):
        for index, run in enumerate(document("submit", BUILD)):
            assert {step["action"] for step in run["steps"][1:]} == {action}
            assert run["steps"][1]["job"] == f"{train}_{index}"
        forget(sweep, "train", "merge", "evaluate")
    alone = document("submit", f"{BUILD}/{POINTS[1]}")[0]["steps"][1]
    assert (alone["action"], alone["job"]) == ("found", f"{train}_1")
    document("submit", BUILD)
    assert arrays_of(sweep) == arrays

    # One task is interrupted and queues again, one is cancelled; the third knows of neither.
    first, other, last = sweep.points
    until(lambda: all(len(point.steps()) > 3 for point in sweep.points))
    assert "t  3 points: 3 running" in higgsc("status", "t").stdout
    sweep.cluster.run("scancel", "--signal=USR1", "--batch", f"{train}_0")
    assert f"train     {train}_2  saved and ended" in higgsc("cancel", POINTS[2]).stdout
    assert "1 cancelled" in higgsc("status", BUILD).stdout
    until(lambda: not any(run["live"] for run in document("status", BUILD)))
    runs = document("status", BUILD)
    assert [run["steps"][1]["restarts"] for run in runs] == [1, 0, 0]
    assert [[step["state"] for step in run["steps"]] for run in runs] == [
        ["done"] * 4, ["done"] * 4, ["done", "cancelled", "cancelled", "cancelled"],
    ]  # fmt: skip
    assert first.steps() == other.steps() == list(range(1, 41))
    assert f"restart 0: goes on in runs/{POINTS[1]}/logs/train-{train}_1.log" in sweep.log(f"{train}_1")
    assert "train rank 0 of 1" in higgsc("logs", POINTS[0], "--step", "train").stdout
    assert f"== {POINTS[1]} train ({train}_1)" in higgsc("logs", BUILD).stdout

    # What is left is that one point: three jobs of its own, no arrays.
    stopped = len(last.steps())
    left = document("submit", BUILD)
    assert [step["action"] for step in left[0]["steps"]] == ["done before"] * 4
    assert [step["action"] for step in left[2]["steps"]] == ["done before", *["submitted"] * 3]
    until(lambda: not any(run["live"] for run in document("status", BUILD)))
    assert last.steps() == list(range(1, 41))
    assert stopped < 40
    assert "nothing to do: every step of every point is done, see runs" in higgsc("submit", BUILD).stdout


class _Dying(SlurmScheduler):
    """A client that is killed when `sbatch` has answered for the second array, and nobody has noted it yet."""

    def submit_array(self, sweep: Points, array: Handover, after: Any) -> str:
        job = super().submit_array(sweep, array, after)
        if array.step == "train":
            raise KeyboardInterrupt
        return job


@pytest.mark.slow
def test_a_client_that_dies_between_sbatch_and_its_journals_has_submitted_once(sweep: Sweep) -> None:
    sweep.write({"array_limit": 1}, SWEEP.replace("2x2xCPU", "1xCPU"), {"prepare": {"steps": 600, "seconds": 0.1}})
    points = sweep_of([open_build(sweep.build / name) for name in POINTS])
    assert points is not None
    with pytest.raises(KeyboardInterrupt):
        submit_sweep(points, _Dying(retry_for=5))
    assert len(arrays_of(sweep)) == 2
    status = document("status", BUILD)[1]["steps"]
    assert [step["state"] for step in status] == ["waiting", "unknown", "unknown", "unknown"]
    rows = submit_sweep(points, SlurmScheduler(retry_for=5))
    assert [[row.action for row in of_point] for of_point in rows] == [["at work", "found", *["submitted"] * 2]] * 3
    assert len(arrays_of(sweep)) == 4
    until(lambda: sweep.points[0].state("prepare"))
    result = higgsc("cancel", "t", "--wait", "20")
    assert result.stdout.count("saved and ended") == 1
    assert result.stdout.count("taken out of the queue") == 11
    steps = [step for run in document("status", BUILD) for step in run["steps"]]
    assert {step["state"] for step in steps} == {"cancelled"}


def test_more_points_than_an_array_holds_is_said_before_anything_is_submitted(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MaxArraySize of the cluster is 1001."""
    rates = [1e-5 * index for index in range(1, 1003)]
    spec = sweep.root / "spec.yaml"
    spec.write_text(SWEEP.replace("[1e-3, 2e-3, 3e-3]", json.dumps(rates)).replace("2x2xCPU", "1xCPU"))
    said = higgsc("doctor", "spec.yaml", code=1).stdout
    assert "the sweep has 1002 points; an array has 1001 tasks at most here (MaxArraySize)" in said
    assert "HC602" in said
