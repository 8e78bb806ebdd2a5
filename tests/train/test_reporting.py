"""What people see of a training: figures in TensorBoard and other tools, lines, the bar, the heartbeat."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from higgsc.catalog.gpus import gpu_by_driver_name
from higgsc.contract.heartbeat import read_heartbeat
from higgsc.contract.jobs import TrackingJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.stop import SAVE_FILE
from higgsc.data.store import Store
from higgsc.train import training
from higgsc.train.checkpoints import saving
from higgsc.train.checkpoints.checkpoint import list_checkpoints
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.report.screen import Screen, clock, line
from higgsc.train.report.speed import Pace, Speed, Window, peak_flops, utilisation

from .conftest import Project

STAND_IN = """
import json
from pathlib import Path

FAILS_FROM = {fails_from}

class Settings(dict): ...
class Run:
    def __init__(self, options): self.lines = [options]
    def log(self, values, step):
        if step >= FAILS_FROM: raise ConnectionError("the network is gone")
        self.lines.append([step, sorted(values)])
    def finish(self): Path({record!r}).open("a").write(json.dumps(self.lines, default=str) + "\\n")
def init(**options): return Run(options)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a module in the place of a tracker's package that records what it is told when it ends."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("WANDB_API_KEY", "not-a-real-one")

    def install(name: str, *, fails_from: int = 99) -> Path:
        record = tmp_path / f"{name}.jsonl"
        (folder / f"{name}.py").write_text(STAND_IN.format(fails_from=fails_from, record=str(record)))
        for module in (name, f"higgsc.train.report.tracking.{name}"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return record

    return install


def test_tensorboard_shows_the_figures_of_metrics_jsonl(project: Project) -> None:
    project.train(project.job())
    events = EventAccumulator(str(project.root / "run" / "tensorboard"))
    events.Reload()
    lines = project.metrics()
    assert set(events.Tags()["scalars"]) == {name for line in lines for name in line} - {"step", "time"}
    shown = {event.step: event.value for event in events.Scalars("loss/audio")}
    assert shown == pytest.approx({line["step"]: line["loss/audio"] for line in lines})


def test_other_trackers_get_the_same(project: Project, stand_in: Any) -> None:
    records = [stand_in("wandb"), stand_in("trackio")]
    tracking = TrackingJob(to=("wandb", "trackio"), project="voices", entity="us")
    for steps in (2, 3):  # the second attempt goes on with the same run
        optimizer = project.job().optimizer.model_copy(update={"steps": steps})
        project.train(project.job(tracking=tracking, optimizer=optimizer))
    assert not (project.root / "run" / "tensorboard").exists()
    names = {name for line in project.metrics() for name in line} - {"step", "time"}
    for record in records:
        first, second = (__import__("json").loads(line) for line in record.read_text().splitlines())
        assert first[0]["project"] == "voices"
        assert first[0]["resume"] == "allow"
        assert first[0]["config"]["optimizer"]["steps"] == 2
        identity = "id" if "id" in first[0] else "name"
        assert first[0][identity] == second[0][identity]
        assert [step for step, _ in first[1:]] == [1, 2]
        assert [step for step, _ in second[1:]] == [3]
        assert set(second[-1][1]) == names


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_found_before_anything_is_loaded(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("higgsc.train.report.tracking.open.importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(training, "load_base", None)  # it could not train if it tried
    with pytest.raises(StepError, match=f"the package `{name}` is not installed here") as caught:
        project.train(project.job(tracking=TrackingJob(to=(name,))))
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert f"pip install {name}" in str(caught.value)
    assert f"`{name}` is not installed" in (project.root / "run/logs/training.log").read_text()


def test_wandb_needs_a_key_unless_it_is_offline(
    project: Project, stand_in: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = stand_in("wandb")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(StepError, match="there is no key for it here"):
        project.train(project.job(tracking=TrackingJob(to=("wandb",))))
    project.train(project.job(tracking=TrackingJob(to=("wandb",), offline=True)))
    assert '"mode": "offline"' in record.read_text()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    project.forget()
    project.train(project.job(tracking=TrackingJob(to=("wandb",))))


def test_a_tracker_that_fails_does_not_end_the_training(
    project: Project, stand_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in("wandb", fails_from=2)
    project.train(project.job(tracking=TrackingJob(to=("wandb", "tensorboard"))))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        "wandb failed, training goes on without it: the network is gone",
        "wandb failed 2 times; metrics.jsonl has all figures",
    ]
    assert len(project.metrics()) == 3


def test_a_tracker_that_cannot_be_opened_is_named(
    project: Project, stand_in: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    stand_in("trackio")
    with (tmp_path / "packages" / "trackio.py").open("a") as module:
        module.write("def init(**options): raise OSError('no space')\n")
    project.train(project.job(tracking=TrackingJob(to=("trackio",))))
    assert "trackio cannot be opened, training goes on without it: no space" in caplog.text


def test_lines_of_the_training(project: Project) -> None:
    project.train(project.job())
    first, *lines = (project.root / "run/logs/training.log").read_text().splitlines()
    assert "attention on cpu: segments" in first
    assert len([line for line in lines if "INFO step " in line]) == 3
    assert all(
        word in lines[1] for word in ("step 2/3", "epoch 1.14", "loss ", "audio ", "text ", "tok/s", "h of speech/h")
    )
    assert "ETA 0:00:0" in lines[1]
    assert any("saved step-3; the steps waited 0.0" in line for line in lines)
    heartbeat = read_heartbeat(project.root / "run")
    assert heartbeat is not None
    assert heartbeat.loss is not None
    assert heartbeat.eta == 0
    assert heartbeat.tokens_per_second == project.metrics()[-2]["tokens_per_second"]


def test_a_bar_on_a_terminal() -> None:
    screen, seen = io.StringIO(), logging.getLogger("higgsc.test")
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with Screen(total=300, start=0, enabled=True, console=console) as bar:
        bar.advance(120, eta=75.0)
        bar.show(line({"loss/total": 6.5, "mfu": 0.412, "gpu_memory_gb": 52.13}))
    seen.info("over")
    text = screen.getvalue()
    assert all(part in text for part in ("120/300", "40%", "ETA 0:01:15", "loss 6.5  MFU 41.2%  52.1 GB"))
    silent = io.StringIO()
    with Screen(total=300, start=0, enabled=True, console=Console(file=silent)) as bar:
        bar.advance(1, eta=None)
    assert silent.getvalue() == ""
    assert [clock(59.6), clock(90_061)] == ["0:01:00", "1 d 1:01:01"]


def test_a_file_asks_for_a_checkpoint_now(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training goes on, to the same end as without."""
    job = project.job(optimizer=project.job().optimizer.model_copy(update={"steps": 5}))
    project.train(job)
    expected = project.adapter(5)
    project.forget()
    seen: list[tuple[int, ...]] = []
    step = training.Training._optimizer_step
    ask = project.root / "run" / SAVE_FILE

    def asking(self: Any, number: int) -> None:
        seen.append(tuple(c.step for c in list_checkpoints(project.root / "run" / "checkpoints")))
        step(self, number)
        if number == 1:
            ask.touch()

    def written(self: Any, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        self.finish()

    save = saving.Saver.save
    monkeypatch.setattr(training.Training, "_optimizer_step", asking)
    monkeypatch.setattr(saving.Saver, "save", written)
    project.train(job)
    assert seen == [(), (), (2,), (2,), (2,)]
    assert not ask.exists()
    (last,) = list_checkpoints(project.root / "run" / "checkpoints")  # the regular one took its place
    assert last.step == 5
    assert all(torch.equal(expected[name], tensor) for name, tensor in project.adapter(5).items())
    assert [line["step"] for line in project.metrics()] == [1, 2, 3, 4, 5]


def test_speed_counts_what_was_trained_on(project: Project) -> None:
    store = Store.open(project.root / "store")
    speed = Speed(project.job(), Mesh.single(torch.device("cpu")), store)
    speed.add(store.train[:3], np.zeros(3, np.int64))
    speed.load(speed.save().model_copy(update={"seconds": 10.0}))  # an attempt of ten seconds before this one
    figures = speed.figures()
    assert figures["samples_per_second"] == pytest.approx(0.3, rel=0.05)
    assert figures["tokens_per_second"] == pytest.approx(store.lengths[store.train[:3]].sum() / 10, rel=0.05)
    assert figures["speech_hours_per_hour"] == pytest.approx(store.target_frames[store.train[:3]].sum() / 250, rel=0.05)
    assert "mfu" not in figures  # nobody knows the peak of this CPU
    assert speed._window.audio_rows < speed._window.tokens < speed._window.squares


def test_utilisation_is_needed_arithmetic_over_the_peak(project: Project) -> None:
    window = Window(samples=1, tokens=1000, squares=1000 * 1000, audio_rows=1000, frames=900, seconds=2.0)
    job = project.job(model=project.job().model.model_copy(update={"base": "a/released-one"}))
    # 2.844 billion weights that an audio token passes through, 4 FLOP each; adapter and attention add a few percent.
    needed = 4 * 2.844e9 * 1000 / 2.0
    assert utilisation(job, window, peak=1e15) == pytest.approx(needed / 1e15, rel=0.06)
    assert utilisation(job, window, peak=2e15) == utilisation(job, window, peak=1e15) / 2
    again = job.model_copy(update={"activation_checkpointing": "full"})
    assert utilisation(again, window, peak=1e15) == utilisation(job, window, peak=1e15)


def test_cards_that_the_peak_is_known_of() -> None:
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe", "Some Card")
    found = [gpu_by_driver_name(name) for name in names]
    assert [gpu and gpu.name for gpu in found] == ["H200", "H100", "A100-80GB", None, None]
    assert peak_flops(torch.device("cpu")) is None


def test_the_pace_is_that_of_the_last_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("higgsc.train.report.speed.time.monotonic", lambda: now)
    pace = Pace(1000, 100)
    assert pace.eta(100) is None
    for done in range(110, 400, 10):
        now += 10.0 if done < 200 else 20.0
        pace.mark(done)
    assert pace.eta(390) == pytest.approx(2.0 * 610)
    assert np.isfinite(pace.eta(395) or 0)
