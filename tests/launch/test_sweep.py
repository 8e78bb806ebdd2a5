"""What of a sweep goes to a scheduler as one array, and the files with secrets that no job may use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from higgsc.cli import group
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import Target, open_build
from higgsc.launch.scheduler import Submission
from higgsc.launch.slurm import parse
from higgsc.launch.slurm.scheduler import SlurmScheduler
from higgsc.launch.sweep import Handover, Sweep, handovers, points_of, sweep_of
from tests.launch.conftest import SPEC
from tests.launch.test_slurm_shapes import NEW, OLD, Stubs, number

SWEEP = f"{SPEC}sweep: {{training.learning_rate: [1e-3, 2e-3, 3e-3]}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the builds of three points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "data.txt").touch()
    return build(tmp_path, SWEEP)


def build(root: Path, spec: str) -> Path:
    (root / "spec.yaml").write_text(spec)
    result = CliRunner().invoke(group, ["build", "spec.yaml"])
    assert result.exit_code == 0, result.output
    return root / "generated" / "t"


def opened(folder: Path) -> list[Target]:
    return [open_build(place) for place in points_of(folder)]


def together(folder: Path) -> Sweep:
    sweep = sweep_of(opened(folder))
    assert sweep is not None
    return sweep


def left(sweep: Sweep, index: int, *names: str) -> list[Submission]:
    """Those steps of a point, each after those of its needs that are among `names` or, with `+`, at work."""
    there = [name.strip("+") for name in names]
    steps = [step for step in sweep.points[index].plan.steps if step.name in names]
    return [
        Submission(step=step, key=f"k{index}-{step.name}", after=tuple(need for need in step.needs if need in there))
        for step in steps
    ]


def shown(parts: list[Handover]) -> list[tuple[str, list[int], tuple[str, ...] | None]]:
    return [(part.name, list(part.tasks), part.after) for part in parts]


def test_all_points_of_a_new_sweep_are_an_array_a_step(folder: Path) -> None:
    sweep = together(folder)
    assert sweep.logs == folder.parent.parent / "runs/t/logs"
    parts = handovers(sweep, [left(sweep, index, "prepare", "train", "merge") for index in range(3)], [{}] * 3)
    everybody = [0, 1, 2]
    assert shown(parts) == [
        ("<prepare>", everybody, ()), ("<train>", everybody, ("<prepare>",)), ("<merge>", everybody, ("<train>",)),
    ]  # fmt: skip
    assert len({part.key for part in parts}) == 3
    assert parts[1].keys() == {index: f"{parts[1].key}_{index}" for index in everybody}


def test_tasks_that_wait_for_different_jobs_are_different_arrays(folder: Path) -> None:
    """The first two wait for the array that is at work, the third for the job of its own."""
    sweep = together(folder)
    wanted = [left(sweep, index, "prepare+", "train", "merge") for index in range(3)]
    parts = handovers(sweep, wanted, [{"prepare": "7_0"}, {"prepare": "7_1"}, {"prepare": "8"}])
    assert shown(parts) == [
        ("<train>", [0, 1], ("7",)), ("<train-2>", [2], None),
        ("<merge>", [0, 1], ("<train>",)), ("<merge-2>", [2], None),
    ]  # fmt: skip
    assert parts[1].keys() == {2: "k2-train"}, "a job of its own goes by its own key"


def test_one_point_that_waits_for_its_task_is_an_array_of_one_and_one_that_waits_for_none_is_a_job(
    folder: Path,
) -> None:
    sweep = together(folder)
    parts = handovers(sweep, [[], left(sweep, 1, "prepare+", "train"), []], [{}, {"prepare": "7_1"}, {}])
    assert shown(parts) == [("<train>", [1], ("7",))]
    parts = handovers(sweep, [[], left(sweep, 1, "prepare+", "train"), []], [{}, {"prepare": "7_4"}, {}])
    assert shown(parts) == [("<train>", [1], None)], "a task with another index is another point's"
    parts = handovers(sweep, [[], left(sweep, 1, "train"), []], [{}] * 3)
    assert shown(parts) == [("<train>", [1], None)]


@pytest.mark.parametrize(
    "spec",
    [
        f"{SWEEP}site: {{chain: 2}}\n",
        SPEC.replace("samples: 4", "samples: 32") + "sweep: {hardware: [1xCPU, 2x2xCPU]}\n",
    ],
    ids=["several jobs in a row", "different machines"],
)
def test_what_is_submitted_point_by_point(folder: Path, spec: str) -> None:
    assert sweep_of(opened(folder)[:1]) is None, "a point alone"
    assert sweep_of(opened(build(folder.parent.parent, spec))) is None


def test_a_dry_run_of_a_sweep_prints_exactly_what_a_submit_executes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = Stubs(tmp_path / "bin", monkeypatch)
    stubs.says("squeue", '{"jobs": []}')
    stubs.says("sbatch", "7;cluster-a\n")
    dry = CliRunner().invoke(group, ["submit", "generated/t", "--dry-run"]).stdout.splitlines()
    assert not (tmp_path / "runs").exists() or not list(tmp_path.glob("runs/*/journal.json"))
    result = CliRunner().invoke(group, ["submit", "generated/t"])
    assert result.exit_code == 0, result.output
    for step in ("prepare", "train"):
        dry = [line.replace(f"'--dependency=aftercorr:<{step}>'", "--dependency=aftercorr:7") for line in dry]
    assert dry[1:] == stubs.calls("sbatch")
    assert len(dry) == 7
    assert dry[-1].endswith(" --dependency=aftercorr:7 --kill-on-invalid-dep=yes generated/t/slurm/merge.sbatch")
    journals = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/journal.json"))]
    assert [journal["steps"]["train"]["job"] for journal in journals] == ["7_0", "7_1", "7_2"]
    # The second submit finds the first one's tasks; with one of them failed, only that point's steps are submitted.
    row = {**NEW, "job_id": number(7), "array_job_id": number(7), "array_task_string": "0,2", "job_state": ["PENDING"]}
    stubs.says("squeue", json.dumps({"jobs": [row]}))
    dry = CliRunner().invoke(group, ["submit", "generated/t", "--dry-run"]).stdout.splitlines()
    assert next(line for line in dry if line.startswith("sbatch --parsable")).endswith("-2e-3/slurm/prepare.sbatch")
    assert len([line for line in dry if line.startswith("# t-learning_rate-1e-3, ")]) == 3


def test_a_point_that_is_at_work_is_not_taken_out_of_the_sweep(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = Stubs(tmp_path / "bin", monkeypatch)
    stubs.says("squeue", '{"jobs": []}')
    stubs.says("sbatch", "7\n")
    assert CliRunner().invoke(group, ["submit", "spec.yaml"]).exit_code == 0
    row = {**OLD, "job_id": 9, "array_job_id": 7, "array_task_id": 2, "job_state": "RUNNING"}
    stubs.says("squeue", json.dumps({"jobs": [row]}))
    (tmp_path / "spec.yaml").write_text(SWEEP.replace(", 3e-3]", "]"))
    before = sorted(path for path in folder.rglob("*"))
    result = CliRunner().invoke(group, ["submit", "spec.yaml"])
    assert isinstance(result.exception, StepError)
    assert "jobs of the earlier build are still at work: prepare (7_2)" in str(result.exception)
    assert sorted(path for path in folder.rglob("*")) == before
    stubs.says("squeue", '{"jobs": []}')
    assert CliRunner().invoke(group, ["submit", "spec.yaml"]).exit_code == 0
    assert len(points_of(folder)) == len(list(folder.glob("*/plan.json"))) == 2


def test_the_logs_of_a_task_begin_with_that_of_its_array(folder: Path) -> None:
    sweep, slurm = together(folder), SlurmScheduler(retry_for=0)
    sweep.logs.mkdir(parents=True)
    for task in ("7_1", "7_11", "7_0", "17_1"):
        (sweep.logs / f"train-{task}.log").write_text(f"{task} goes on elsewhere\n")
    point = sweep.points[1]
    assert list(slurm.log(point, "train", "7_1", follow=False)) == ["7_1 goes on elsewhere"]
    (point.run / "logs").mkdir(parents=True)
    (point.run / "logs/train-7_1.log").write_text("here\n")
    assert list(slurm.log(point, "train", "7_1", follow=False)) == ["7_1 goes on elsewhere", "here"]


def test_tasks_in_the_words_of_every_command_and_version() -> None:
    assert parse.tasks_of("7") == (7,)
    assert parse.tasks_of("0-2") == (0, 1, 2)
    assert parse.tasks_of("[1,4-8:2%2]") == (1, 4, 6, 8)
    assert parse.tasks_of("N/A") == ()
    rest = {"array_job_id": 40, "array_task_id": None, "array_task_string": "3-5%1"}
    one = {"array_job_id": number(40), "array_task_id": number(2), "array_task_string": ""}
    alone = {"array_job_id": number(0), "array_task_id": number(None), "array_task_string": ""}
    jobs = parse.from_squeue(json.dumps({"jobs": [{**OLD, **rest}, {**NEW, **one}, {**NEW, **alone}]}))
    assert [job.ids for job in jobs] == [("40", "40_3", "40_4", "40_5"), ("40", "40_2"), ("7",)]
    (job,) = parse.from_scontrol("JobId=41 ArrayJobId=40 ArrayTaskId=1-2%1 JobState=PENDING Reason=None")
    assert job.ids == ("40", "40_1", "40_2")
    first, second = parse.from_sacct("41|40_1|FAILED|Unknown|Unknown|\n40|40_[2-3%1]|PENDING|Unknown|Unknown|\n")
    assert (first.ids, second.ids) == (("40", "40_1"), ("40", "40_2", "40_3"))
    (job,) = parse.from_listing("40|3,5|PENDING|higgsc:aa")
    assert job.ids == ("40", "40_3", "40_5")


def test_a_list_of_points_that_is_none(folder: Path) -> None:
    (folder / "sweep.json").write_text("[]")
    with pytest.raises(StepError) as caught:
        points_of(folder)
    assert caught.value.code == ExitCode.BAD_DATA


@pytest.mark.parametrize("mode, refused", [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o620, True)])
def test_a_secret_that_others_can_read_is_refused_before_anything_is_submitted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, refused: bool
) -> None:
    build(tmp_path, f"{SPEC}secrets: [HF_TOKEN]\n")
    stubs = Stubs(tmp_path / "bin", monkeypatch)
    stubs.says("squeue", '{"jobs": []}')
    stubs.says("sbatch", "7\n")
    secret = tmp_path / "home/.config/higgsc/secrets/HF_TOKEN"
    secret.parent.mkdir(parents=True)
    secret.write_text("x")
    secret.chmod(mode)
    result = CliRunner().invoke(group, ["submit", "generated/t"])
    assert (result.exit_code != 0) == refused
    assert (tmp_path / "bin/calls").exists() != refused
    if refused:
        assert isinstance(result.exception, StepError)
        assert f"chmod 600 {secret}" in str(result.exception)
        stubs.says("scontrol", "")
        stubs.says("sinfo", "")
        found = CliRunner().invoke(group, ["doctor", "spec.yaml", "--json"])
        rows = json.loads(found.stdout)["findings"]
        assert [row["help"] for row in rows if row["path"] == "secrets"] == [
            f"run `chmod 600 {secret}`; a secret that others have seen is better replaced"
        ]
        assert next(row for row in rows if row["path"] == "secrets")["place"]["line"] == 8
    assert os.stat(secret).st_mode & 0o777 == mode, "nobody changes a person's files"
