"""`higgsc run` on builds whose steps are small real programs: skipping, failing, interrupting, locking."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.write import write
from higgsc.launch.local import run_plan
from tests.launch.conftest import Project

REPOSITORY = Path(__file__).parent.parent.parent

STEP = """
import json, os, sys, time
from pathlib import Path
from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.outcome import StepResult
from higgsc.contract.receipts import write_receipt
name, root = sys.argv[1], Path.cwd()
run = root / "runs" / "t"
print("hello from", name, flush=True)
HeartbeatWriter(run, name, unit="things", total=2).beat(1, "working")
behaviour = json.loads((root / "behaviour.json").read_text()).get(name, {})
time.sleep(behaviour.get("sleep", 0))
if "exit" in behaviour:
    print("the cause of the failure", flush=True)
    sys.exit(behaviour["exit"])
(root / f"{name}.out").write_text("x")
result = StepResult(summary=f"{name} did it", inputs=(root / "data.txt",), outputs=(root / f"{name}.out",))
write_receipt(run, name, result, job_path=root / f"generated/t/jobs/{name}.json", root=root, seconds=0.1)
"""


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A real build whose `run.sh` calls STEP in place of `higgsc run-step`."""
    (tmp_path / "spec.yaml").write_text(
        "apiVersion: higgsc/v1\nname: t\n"
        "model: {family: higgs-audio-v2, base: builtin:tiny, audio_tokenizer: builtin:tiny}\n"
        "data: {train: [{path: data.txt}]}\nhardware: 1xCPU\nevaluate: null\n"
        "training: {steps: 9, global_batch: {samples: 4}, learning_rate: 1e-3}\n"
    )
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "behaviour.json").write_text("{}")
    compilation = compile_spec(tmp_path / "spec.yaml")
    (compiled,) = builds_of(compilation)
    folder = tmp_path / "generated" / "t"
    write(folder, emit_all(compiled))
    (tmp_path / "step.py").write_text(STEP)
    script = folder / "torchrun" / "run.sh"
    text = script.read_text()
    for name in ("prepare", "train", "merge"):
        text = text.replace(f"python -m higgsc run-step generated/t/jobs/{name}.json", f"python step.py {name}")
    script.write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def states(build: Path) -> dict[str, str]:
    journal = json.loads((build.parent.parent / "runs/t/journal.json").read_text())
    return {name: step["state"] for name, step in journal["steps"].items()}


def test_runs_all_steps_in_order_and_says_where_the_outputs_are(build: Path) -> None:
    lines = list(run_plan(build))
    assert [line.split()[0] for line in lines[:3]] == ["prepare", "train", "merge"]
    assert "merge did it" in lines[2]
    assert any("merge.out" in line for line in lines[3:])
    assert set(states(build).values()) == {"done"}
    log = build.parent.parent / "runs/t/logs/train.log"
    assert "hello from train" in log.read_text()


def test_a_second_run_skips_what_is_done(build: Path) -> None:
    list(run_plan(build))
    lines = list(run_plan(build))
    assert all("done before" in line for line in lines[:3])
    assert set(states(build).values()) == {"skipped"}


@pytest.mark.parametrize(
    "change, reran",
    [
        ("job", ["train", "merge"]),
        ("input", ["prepare", "train", "merge"]),
        ("output", ["merge"]),
        ("from", ["train", "merge"]),
    ],
)
def test_what_changed_runs_again_with_all_that_follows(build: Path, change: str, reran: list[str]) -> None:
    list(run_plan(build))
    root = build.parent.parent
    first = None
    match change:
        case "job":
            job = build / "jobs" / "train.json"
            job.write_text(job.read_text() + "\n")
        case "input":
            (root / "data.txt").write_text("other data")
        case "output":
            (root / "merge.out").unlink()
        case "from":
            first = "train"
    list(run_plan(build, first=first))
    assert [name for name, state in states(build).items() if state == "done"] == reran


def test_a_failing_step_stops_the_run_and_shows_its_log(build: Path) -> None:
    (build.parent.parent / "behaviour.json").write_text('{"train": {"exit": 65}}')
    for _ in range(2):  # the second time, only the second attempt's lines are shown
        with pytest.raises(StepError) as caught:
            list(run_plan(build))
        assert caught.value.code == ExitCode.BAD_DATA
        assert str(caught.value).count("the cause of the failure") == 1
    assert states(build) == {"prepare": "skipped", "train": "failed", "merge": "waiting"}
    (build.parent.parent / "behaviour.json").write_text("{}")
    list(run_plan(build))
    assert states(build) == {"prepare": "skipped", "train": "done", "merge": "done"}


def test_interrupting_stops_the_step_and_can_be_taken_up(build: Path) -> None:
    root = build.parent.parent
    (root / "behaviour.json").write_text('{"train": {"sleep": 60}}')
    program = (
        "import sys; from pathlib import Path; from higgsc.launch.local import run_plan\n"
        "from higgsc.contract.outcome import StepError\n"
        f"try:\n    list(run_plan(Path({str(build)!r})))\nexcept StepError as error:\n    sys.exit(error.code)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    heartbeat = root / "runs/t/heartbeat.json"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (heartbeat.exists() and "train" in heartbeat.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == ExitCode.INTERRUPTED
    assert states(build)["train"] == "interrupted"
    assert not subprocess.run(["pgrep", "-f", f"{root}/step.py"], capture_output=True, check=False).stdout
    (root / "behaviour.json").write_text("{}")
    list(run_plan(build))
    assert states(build) == {"prepare": "skipped", "train": "done", "merge": "done"}


def test_two_runs_in_one_folder_are_refused(build: Path) -> None:
    running = run_plan(build)
    next(running)
    with pytest.raises(StepError, match="another `higgsc run` "):
        next(run_plan(build))
    list(running)


def test_an_unknown_step_and_a_missing_build_are_refused(build: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no step `trian`"):
        next(run_plan(build, first="trian"))
    with pytest.raises(StepError) as caught:
        next(run_plan(tmp_path / "nowhere"))
    assert caught.value.code == ExitCode.MISSING_INPUT


def test_a_plan_for_several_nodes_is_refused_here() -> None:
    with pytest.raises(StepError, match="needs 2 nodes"):
        next(run_plan(REPOSITORY / "generated" / "two-node"))


def test_a_step_that_was_asked_to_stop_is_interrupted_though_it_ends_with_0(project: Project) -> None:
    """Exit codes do not survive torchrun: the step's state says that it has more to do."""
    project.behave(train={"steps": 300})
    running = subprocess.Popen(
        [sys.executable, "-m", "higgsc", "run", "generated/t"],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    project.until(lambda: (project.run / "state" / "train").exists())
    (project.run / "stop").touch()
    said = running.communicate(timeout=30)[1]
    assert running.returncode == ExitCode.INTERRUPTED
    assert re.search(r"train was interrupted after \d+ of 300, which is saved", said)
    assert states(project.build) == {"prepare": "done", "train": "interrupted", "merge": "waiting"}
    assert project.states()["train"] == "interrupted"
    project.behave(train={"steps": int((project.run / "state/train").read_text().split()[1]) + 1})
    list(run_plan(project.build))
    assert states(project.build) == {"prepare": "skipped", "train": "done", "merge": "done"}


def test_a_step_that_ends_with_neither_receipt_nor_state_is_a_failure(project: Project) -> None:
    (project.root / "step.py").write_text("")
    with pytest.raises(StepError, match="ended without a receipt"):
        list(run_plan(project.build))
    assert states(project.build)["prepare"] == "failed"
