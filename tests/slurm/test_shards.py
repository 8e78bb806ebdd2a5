"""Encoding as an array: what the scripts say, and what a real cluster makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from higgsc.contract.outcome import StepResult
from higgsc.contract.receipts import read_receipt, receipt_of
from higgsc.contract.shards import put_shard_receipt
from higgsc.launch.built import open_build
from higgsc.launch.scheduler import Submission
from higgsc.launch.slurm.scheduler import SlurmScheduler
from tests.slurm.cluster import Cluster
from tests.slurm.project import SPEC, Project
from tests.slurm.test_arrays import scripts as sweep_scripts
from tests.slurm.test_scripts import scripts

SHARDED = SPEC.replace("data: {train: [{path: data.json}]}", "data: {train: [{path: data.json}], prepare: {shards: 3}}")


def test_the_array_is_between_nothing_and_prepare(tmp_path: Path) -> None:
    assert SHARDED != SPEC
    files = scripts(tmp_path, {"array_limit": 2}, SHARDED)
    submit = files["submit.sh"]
    assert "--array=0-2%2 --output=runs/t/logs/encode-%A_%a.log" in submit
    assert "generated/t/slurm/encode.sbatch shards)" in submit
    assert '--dependency="afterok:$encode" ' in submit
    assert submit.count("--array") == 1
    assert "--array" not in files["encode.sbatch"].replace("(sbatch --array=0-2", ""), "a script is also run alone"
    assert 'run-step generated/t/jobs/encode.json "${shard[@]}"' in files["encode.sbatch"]
    assert "shard" not in files["prepare.sbatch"]


def test_without_shards_there_is_no_such_step(tmp_path: Path) -> None:
    assert "encode.sbatch" not in scripts(tmp_path, {}, SPEC)


def test_in_a_sweep_the_task_of_a_point_does_all_its_shards(tmp_path: Path) -> None:
    files = sweep_scripts(tmp_path, {}, SHARDED + "sweep: {training.learning_rate: [1e-3, 2e-3]}\n")
    assert "--array=0-1" in files["encode.sbatch"]
    assert "shards" not in files["submit.sh"]


def test_each_task_has_its_shard_and_prepare_waits_for_all(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path)
    project.write({"launcher": "srun"}, SHARDED)
    jobs = project.submit()
    assert list(jobs) == ["encode", "prepare", "train", "merge", "evaluate"]
    cluster.wait(jobs["prepare"], "COMPLETED", timeout=120)
    for shard in range(3):
        assert f"encode rank 0 of 1 --shard {shard} on" in project.log(f"{jobs['encode']}_{shard}", "encode")
    alone = project.sbatch("encode")
    cluster.wait(alone, "COMPLETED")
    assert "encode rank 0 of 1 on" in project.log(alone, "encode")


def test_submit_says_the_same_as_the_script(tmp_path: Path) -> None:
    project = Project(None, tmp_path)  # type: ignore[arg-type]
    project.write({}, SHARDED)
    target = open_build(project.build)
    submission = Submission(step=target.step("encode"), key="k", after=())
    test, submit = SlurmScheduler(retry_for=0).commands(target, [submission], {})
    assert test[:2] == ("sbatch", "--test-only")
    array = ("--array=0-2", "--output=runs/t/logs/encode-%A_%a.log", "generated/t/slurm/encode.sbatch", "shards")
    assert test[-4:] == submit[-4:] == array


def test_the_receipt_of_the_last_shard_is_that_of_the_step(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text("1")

    def finish(shard: int) -> None:
        result = StepResult(summary="", inputs=(job,), outputs=(tmp_path,), figures={"clips": shard + 1})
        receipt = receipt_of("encode", result, job_path=job, root=tmp_path, seconds=float(shard))
        put_shard_receipt(tmp_path, receipt, shard=shard, shards=3)

    for shard in (2, 0):
        finish(shard)
        assert read_receipt(tmp_path, "encode") is None
    job.write_text("2")
    finish(1)
    assert read_receipt(tmp_path, "encode") is None, "the others are of another job file"
    for shard in (0, 2):
        finish(shard)
    receipt = read_receipt(tmp_path, "encode")
    assert receipt is not None
    assert receipt.summary == "3 shards: 6 clips"
    assert [stamp.path for stamp in receipt.inputs] == ["job.json"]


@pytest.mark.slow
def test_a_sharded_plan_runs_here_one_shard_after_the_other(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    spec = (root / "specs/quickstart.yaml").read_text("utf-8")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/data").symlink_to(root / "specs/data")
    (tmp_path / "specs/sites").symlink_to(root / "specs/sites")
    (tmp_path / "specs/quickstart.yaml").write_text(spec)
    options: Any = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    build = [sys.executable, "-m", "higgsc", "build", "specs/quickstart.yaml", "--set", "data.prepare.shards=2"]
    done = subprocess.run(build, **options)
    assert done.returncode == 0, done.stderr
    job = next(tmp_path.glob("generated/*/jobs/encode.json"))
    for shard in ("1", "0"):
        step = [sys.executable, "-m", "higgsc", "run-step", str(job), "--shard", shard]
        done = subprocess.run(step, **options)
        assert done.returncode == 0, done.stderr
    run = next((tmp_path / "runs").glob("[a-z]*"))
    receipt = read_receipt(run, "encode")
    assert receipt is not None
    assert receipt.figures["encoded"] == 32
    refused = subprocess.run(
        [sys.executable, "-m", "higgsc", "run-step", str(job.with_name("prepare.json")), "--shard", "0"], **options
    )
    assert refused.returncode == 2
    assert "prepare has no shards" in refused.stderr
