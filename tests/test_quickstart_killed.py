"""The quickstart on two processes, one of them killed in the middle: the adapter is the same, byte by byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from higgsc.contract.outcome import ExitCode
from higgsc.contract.state import StepState, read_state

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALLER = ("hardware=2xCPU", "training.steps=18", "checkpoint.every_steps=6", "training.micro_batch.samples=1")


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": path}


def run(project: Path, step: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "generated/quickstart/torchrun/run.sh", step],
        cwd=project, env=environment(), text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip


def descendants(pid: int) -> list[int]:
    """All processes below one, parents before children."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [process for child in children for process in (child, *descendants(child))]


def adapter(project: Path) -> dict[str, bytes]:
    folder = project / "runs/quickstart/checkpoints/step-18/adapter"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_quickstart_with_a_kill_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "specs" / "data").mkdir(parents=True)
    shutil.copy(ROOT / "specs" / "quickstart.yaml", tmp_path / "specs")
    shutil.copytree(ROOT / "specs" / "data" / "quickstart", tmp_path / "specs" / "data" / "quickstart")
    settings = [word for setting in SMALLER for word in ("--set", setting)]
    build = [sys.executable, "-m", "higgsc", "build", "specs/quickstart.yaml", *settings]
    subprocess.run(build, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    assert run(tmp_path, "prepare").returncode == 0
    whole = run(tmp_path, "train")
    assert whole.returncode == 0, whole.stderr
    expected = adapter(tmp_path)
    folder = tmp_path / "runs" / "quickstart"
    for name in ("checkpoints", "state", "metrics.jsonl", "tensorboard"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    with subprocess.Popen(
        ["bash", "generated/quickstart/torchrun/run.sh", "train"], cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as killed:  # fmt: skip
        end = time.monotonic() + 240
        while (state := read_state(folder, "train")) is None or not 6 <= state.done < 18:
            assert time.monotonic() < end
            assert killed.poll() is None
            time.sleep(0.01)
        os.kill(descendants(killed.pid)[-1], signal.SIGSTOP)  # so that it does not end during what follows
        other = run(tmp_path, "train")
        assert other.returncode != 0
        assert "another training is at work in this folder: process " in other.stderr
        assert "the first process failed; its message says why" in other.stderr  # says the second
        os.kill(descendants(killed.pid)[-1], signal.SIGKILL)
        assert killed.wait(60) not in (0, ExitCode.INTERRUPTED)
    assert read_state(folder, "train") != StepState("done", 18, 18)
    rest = run(tmp_path, "train")
    assert rest.returncode == 0, rest.stderr
    assert "going on from step-" in rest.stderr
    assert adapter(tmp_path) == expected
