"""A sweep as job arrays: what the scripts say, and what a real cluster makes of their tasks."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.points import sweep_files
from tests.slurm.cluster import Cluster
from tests.slurm.project import SPEC, until
from tests.slurm.sweep import POINTS, SWEEP, Sweep, compiled


@pytest.fixture
def sweep(cluster: Cluster, tmp_path: Path) -> Sweep:
    return Sweep(cluster, tmp_path)


def scripts(folder: Path, site: Mapping[str, Any], spec: str = SWEEP) -> dict[str, str]:
    files = {
        path.removeprefix("slurm/"): text
        for path, text in sweep_files(compiled(folder, site, spec)).items()
        if path.startswith("slurm/")
    }
    for path, text in files.items():
        (folder / path).write_text(text)
    if files:
        command = ["shellcheck", "-S", "style", "-e", "SC2016", *(folder / path for path in files)]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, done.stdout.decode()
    return files


def test_each_step_is_an_array_with_a_task_for_every_point(tmp_path: Path) -> None:
    files = scripts(tmp_path, {"array_limit": 2, "partition": "gpu"})
    assert sorted(files) == ["evaluate.sbatch", "merge.sbatch", "prepare.sbatch", "submit.sh", "train.sbatch"]
    train = files["train.sbatch"]
    for line in ("--array=0-2%2", "--job-name=t-train", "--output=runs/t/logs/train-%A_%a.log", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in train
    for index, name in enumerate(POINTS):
        assert f"  {index}) point=generated/t/{name} run=runs/{name} ;;\n" in train
    assert "torch" not in train, "what a task does is in the point's own script"
    assert re.findall(r'--dependency="(.*?)"', files["submit.sh"]) == [
        "aftercorr:$prepare",
        "aftercorr:$train",
        "aftercorr:$merge",
    ]


def test_scripts_of_points_know_tasks_of_arrays_and_others_do_not(tmp_path: Path) -> None:
    single, *_ = (emit_all(build) for build in builds_of(compiled(tmp_path, {}, SPEC)))
    point, *_ = (emit_all(build) for build in builds_of(compiled(tmp_path, {})))
    assert "SLURM_ARRAY" not in single["slurm/train.sbatch"]
    assert 'scontrol requeue "$SLURM_JOB_ID"' in single["slurm/train.sbatch"]
    assert "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}" in point["slurm/train.sbatch"]
    assert 'scontrol requeue "$job"' in point["slurm/train.sbatch"]


def test_without_a_limit_all_points_may_run_at_once(tmp_path: Path) -> None:
    assert "#SBATCH --array=0-2\n" in scripts(tmp_path, {})["train.sbatch"]


def test_a_chain_of_arrays(tmp_path: Path) -> None:
    submit = scripts(tmp_path, {"chain": 2})["submit.sh"]
    assert submit.count("generated/t/slurm/train.sbatch") == 2
    assert '--dependency="afterany:$train" ' in submit
    assert '--dependency="aftercorr:$train_2" ' in submit


def test_a_folder_with_hostile_characters_stays_a_folder(tmp_path: Path) -> None:
    output = "runs/$(touch canary) %A 'x'; é"
    train = scripts(tmp_path, {}, f"{SWEEP}output: {json.dumps(output)}\n")["train.sbatch"]
    assert """#SBATCH --output='runs/$(touch canary) %%A '"'"'x'"'"'; é/t/logs/train-%A_%a.log'""" in train
    ask = train[train.index("case ") : train.index("script=")] + 'printf %s "$run"'
    done = subprocess.run(["bash", "-c", ask], env={"SLURM_ARRAY_TASK_ID": "1"}, cwd=tmp_path, capture_output=True)
    assert done.stdout.decode() == f"{output}/{POINTS[1]}"
    assert not (tmp_path / "canary").exists()


def test_points_that_ask_for_different_things_are_no_array(tmp_path: Path) -> None:
    spec = f"{SPEC}sweep: {{hardware: [2x2xCPU, 1xCPU]}}\n"
    assert scripts(tmp_path, {}, spec) == {}
    assert sorted(sweep_files(compiled(tmp_path, {}, spec))) == ["higgsc.lock", "sweep.json"]


def test_a_task_that_is_told_to_stop_queues_again_alone(sweep: Sweep) -> None:
    """The first task; and the last, whose plain job id is that of the whole array."""
    counting = {"steps": 40, "seconds": 0.1}
    long = {"train": {"steps": 80}}
    sweep.write({"launcher": "srun", "array_limit": 2}, behaviour={"train": counting, POINTS[1]: long})
    first, other, last = sweep.points
    jobs = sweep.submit()
    job = jobs["train"]
    until(lambda: len(first.steps()) > 3 and len(other.steps()) > 3)
    assert last.steps() == [], "two at a time"
    sweep.cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_0")
    until(lambda: len(last.steps()) > 3)
    assert last.variables("train")["SLURM_JOB_ID"] == job
    sweep.cluster.run("scancel", "--signal=USR1", "--batch", f"{job}_2")
    until(lambda: last.state()[0] == "interrupted")
    assert other.state()[0] == "running"
    for index in range(3):
        sweep.cluster.wait(f"{jobs['evaluate']}_{index}", "COMPLETED")
    assert [sweep.cluster.job(f"{job}_{index}")["Restarts"] for index in range(3)] == ["1", "0", "1"]
    for index, (point, steps) in enumerate(zip(sweep.points, (40, 80, 40), strict=True)):
        assert point.steps() == list(range(1, steps + 1))
        assert point.state() == ["done", str(steps), str(steps)]
        assert "train rank 3 of 4 on node2" in point.log(f"{job}_{index}")
        assert f"goes on in runs/{POINTS[index]}/logs/train-{job}_{index}.log" in sweep.log(f"{job}_{index}")


def test_a_point_that_fails_or_is_cancelled_takes_only_its_own_steps_along(sweep: Sweep) -> None:
    behaviour = {POINTS[1]: {"train": {"exit": 65}}, POINTS[2]: {"train": {"steps": 600, "seconds": 0.1}}}
    sweep.write({"launcher": "srun"}, behaviour=behaviour)
    jobs = sweep.submit()
    cancelled = sweep.points[2]
    until(lambda: len(cancelled.steps()) > 3)
    sweep.cluster.run("scancel", f"{jobs['train']}_2")
    sweep.cluster.wait(f"{jobs['evaluate']}_0", "COMPLETED")
    until(lambda: sweep.tasks(jobs["evaluate"]) == {"0": "COMPLETED", "1": "CANCELLED", "2": "CANCELLED"})
    assert sweep.tasks(jobs["train"]) == {"0": "COMPLETED", "1": "FAILED", "2": "CANCELLED"}
    assert sweep.tasks(jobs["merge"]) == {"0": "COMPLETED", "1": "CANCELLED", "2": "CANCELLED"}
    until(lambda: cancelled.state()[0] == "interrupted", timeout=10)


def test_a_chain_of_arrays_goes_on_where_each_task_stopped(sweep: Sweep) -> None:
    counting = {"train": {"steps": 30, "seconds": 0.1}, POINTS[1]: {"train": {"steps": 3}}}
    sweep.write({"launcher": "srun", "chain": 2}, SWEEP.replace("2x2xCPU", "1xCPU"), counting)
    jobs = sweep.submit()
    stopped, _, running = sweep.points
    until(lambda: len(stopped.steps()) > 3 and len(running.steps()) > 3)
    links = sweep.cluster.run("squeue", "-h", "-t", "all", "-n", "t-train", "-o", "%F").split()
    earlier = str(min(int(link) for link in links if int(link) > int(jobs["prepare"])))
    sweep.cluster.run("scancel", "--signal=USR1", "--batch", f"{earlier}_0")
    for index, steps in enumerate((30, 3, 30)):
        sweep.cluster.wait(f"{jobs['evaluate']}_{index}", "COMPLETED")
        assert sweep.points[index].steps() == list(range(1, steps + 1))
    assert sweep.tasks(earlier) == {"0": "FAILED", "1": "COMPLETED", "2": "COMPLETED"}
