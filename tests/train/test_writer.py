"""Saving beside the training: the steps do not wait, errors arrive, nobody leaves before the last one is written."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from higgsc.contract.jobs import CheckpointJob
from higgsc.contract.outcome import ExitCode, Interrupted, StepError
from higgsc.train import training
from higgsc.train.checkpoints import checkpoint, saving
from higgsc.train.checkpoints.checkpoint import list_checkpoints
from higgsc.train.checkpoints.writer import BackgroundWriter, HostCopy

from .conftest import Project
from .test_resume import long_job, outcome, stop_at_vote  # noqa: F401


def test_one_at_a_time_and_the_last_is_waited_for() -> None:
    done = []

    def work() -> None:
        time.sleep(0.05)
        done.append(threading.current_thread().name)

    with BackgroundWriter() as writer:
        writer.start(work)
        assert done == []
        with pytest.raises(AssertionError):
            writer.start(work)
        writer.finish()
        assert len(done) == 1
        writer.start(work)
    assert len(done) == 2
    assert "checkpoint" in done[0]


def test_an_error_arrives_once(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("no room")

    with BackgroundWriter() as writer:
        writer.start(fail)
        while not writer.failed:
            time.sleep(0.001)
        with pytest.raises(OSError, match="no room"):
            writer.finish()
        assert not writer.failed
        writer.finish()
    with pytest.raises(OSError, match="no room"), BackgroundWriter() as writer:
        writer.start(fail)
    writer = BackgroundWriter()
    writer.start(fail)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # what is on its way is not replaced
    assert "the last checkpoint could not be written: no room" in caplog.text


def test_a_copy_does_not_change_with_the_original() -> None:
    host, tensor = HostCopy(torch.device("cpu")), torch.arange(4.0)
    place = host.reserve("a", tensor).data_ptr()
    copy = host.copy("a", tensor)
    host.begun()
    host.wait()
    tensor.add_(1)
    assert copy.tolist() == [0, 1, 2, 3]
    assert host.copy("a", tensor).data_ptr() == place
    assert host.copy("b", torch.ones(2, 2)).data_ptr() != place


def test_the_steps_do_not_wait_for_the_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on during a save that takes ten times as long, and a save waits for the one before."""
    job = long_job(project)
    project.train(job)
    expected = outcome(project)
    project.forget()
    save, step, began = saving.save_checkpoint, training.Training._optimizer_step, {}
    writing = threading.Event()
    meanwhile = []

    def slow(*arguments: Any, **named: Any) -> Path:
        assert not writing.is_set()
        writing.set()
        time.sleep(0.5)
        path = save(*arguments, **named)
        writing.clear()
        return path

    def noted(self: Any, number: int) -> None:
        began[number] = time.monotonic()
        if writing.is_set():
            meanwhile.append(number)
        step(self, number)

    monkeypatch.setattr(saving, "save_checkpoint", slow)
    monkeypatch.setattr(training.Training, "_optimizer_step", noted)
    project.train(job)
    assert outcome(project) == expected
    assert {5, 9} <= set(meanwhile)  # after the checkpoints of steps 4 and 8
    assert began[5] - began[3] < 0.5  # two steps, a validation, and no disk


@pytest.mark.parametrize("harm", ["disk", "bug"])
def test_an_error_ends_the_training_at_the_next_vote(
    project: Project, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    job = long_job(project, checkpoint=CheckpointJob(every_steps=2, keep_last=9))
    write, steps = checkpoint.save_file, []

    def fail(*arguments: Any, **named: Any) -> None:
        if "step-4" in str(arguments):
            raise OSError(errno.ENOSPC, "No space left on device") if harm == "disk" else ZeroDivisionError
        write(*arguments, **named)

    step = training.Training._optimizer_step

    def noted(self: Any, number: int) -> None:
        steps.append(number)
        time.sleep(0.2)
        step(self, number)

    monkeypatch.setattr(checkpoint, "save_file", fail)
    monkeypatch.setattr(training.Training, "_optimizer_step", noted)
    with pytest.raises(StepError if harm == "disk" else ZeroDivisionError) as caught:
        project.train(job)
    assert steps[-1] in (4, 5)  # one step went on meanwhile
    if harm == "disk":
        assert isinstance(caught.value, StepError)
        assert caught.value.code == ExitCode.IO
    folder = project.root / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-2"]


def test_whoever_stops_waits(project: Project, monkeypatch: pytest.MonkeyPatch, stop_at_vote: Any) -> None:  # noqa: F811
    """Asked to stop while a checkpoint is being written: the next one comes after it, and both are there."""
    save = saving.save_checkpoint
    saves = []

    def slow(folder: Path, step: int, **named: Any) -> Path:
        saves.append((step, named["interrupted"]))
        time.sleep(0.3)
        return save(folder, step, **named)

    monkeypatch.setattr(saving, "save_checkpoint", slow)
    stop_at_vote(8)  # after step 5: before steps 1 to 4 and the checkpoint, and 2 in its validation
    assert project.attempt(long_job(project)) == Interrupted(done=5, total=10, unit="steps")
    assert saves == [(4, False), (5, True)]
    assert [c.step for c in list_checkpoints(project.root / "run" / "checkpoints")] == [4, 5]
