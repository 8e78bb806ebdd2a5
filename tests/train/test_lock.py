"""Two trainings in one folder."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.faults import lock
from higgsc.train.faults.lock import LOCK_FILE, hold_run

from .conftest import Project


def _hold_for_ever(run: Path, ready: Any) -> None:
    with hold_run(run):
        ready.set()
        signal.pause()


def _hold(run: Path, ready: Any, seconds: float) -> None:
    with hold_run(run):
        ready.set()
        time.sleep(seconds)


def test_the_second_is_refused_until_the_first_is_dead(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4813")
    run = project.root / "run"
    spawn = multiprocessing.get_context("fork")
    ready = spawn.Event()
    other = spawn.Process(target=_hold_for_ever, args=(run, ready))
    other.start()
    try:
        assert ready.wait(30)
        monkeypatch.setenv("SLURM_JOB_ID", "5000")
        with pytest.raises(StepError) as caught:
            project.train(project.job())
        assert caught.value.code == ExitCode.IO
        assert f"another training is at work in this folder: process {other.pid} on " in str(caught.value)
        assert "Slurm job 4813, since 20" in str(caught.value)
        assert not (run / "checkpoints").exists()
        assert not (run / "state").exists()
    finally:
        other.kill()
        other.join()
    project.train(project.job())  # what a killed one has left is no obstacle
    owner = json.loads((run / LOCK_FILE).read_text())
    assert owner["pid"] == os.getpid()
    project.train(project.job())  # nor what a finished one has


def test_a_requeued_job_waits_for_what_is_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4813")
    spawn = multiprocessing.get_context("fork")
    ready = spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path, ready, 0.5))
    other.start()
    assert ready.wait(30)
    with hold_run(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        monkeypatch.setattr(lock, "WAIT_SECONDS", 0.05)
        with pytest.raises(StepError, match=f"process {os.getpid()} on .*, Slurm job 4813"), hold_run(tmp_path):
            pass
    other.join()


def test_one_that_has_just_begun(tmp_path: Path) -> None:
    with (tmp_path / LOCK_FILE).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StepError, match="process unknown on an unknown host"), hold_run(tmp_path):
            pass


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_run(tmp_path):
        assert "would go unnoticed" in caplog.text
