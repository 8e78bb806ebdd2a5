"""Interrupted and taken up again, a training is the training that was never interrupted: to the bit."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diff import EFFECTS, diff, worst
from higgsc.contract.heartbeat import read_heartbeat
from higgsc.contract.jobs import BatchJob, CheckpointJob, TrainJob
from higgsc.contract.outcome import ExitCode, Interrupted, StepError, StepResult
from higgsc.contract.state import StepState, read_state
from higgsc.contract.stop import request_stop
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.train import training
from higgsc.train.checkpoints.checkpoint import list_checkpoints
from higgsc.train.checkpoints.resume import changed

from .conftest import Project

SPECS = Path(__file__).parents[2] / "specs"
CLOCK = {"time", "tokens_per_second", "samples_per_second", "speech_hours_per_hour"}


def long_job(project: Project, **changes: Any) -> TrainJob:
    """Ten steps over six epochs of seven samples, in two micro-batches, with dropout; saved every 4, logged every 3."""
    job = project.job()
    parts = {
        "batch": BatchJob(global_samples=4, micro_samples=2, accumulation=2),
        "lora": job.lora.model_copy(update={"dropout": 0.3}),
        "optimizer": job.optimizer.model_copy(update={"steps": 10, "warmup_steps": 3, "weight_decay": 0.1}),
        "checkpoint": CheckpointJob(every_steps=4, keep_last=2),
        "log_every_steps": 3,
    }
    return project.job(**(parts | changes))


def outcome(project: Project) -> tuple[Any, ...]:
    """All that a training leaves and that no clock has a part in: figures as hexadecimal floats, files as bytes."""
    lines = [
        {name: float(value).hex() for name, value in line.items() if name not in CLOCK} for line in project.metrics()
    ]
    checkpoints = {}
    for folder in sorted((project.root / "run" / "checkpoints").iterdir()):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name not in ("progress.json", "manifest.json"):
                checkpoints[file.relative_to(folder.parent).as_posix()] = file.read_bytes()
    return lines, checkpoints


@pytest.fixture
def stop_at_vote(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say at which vote of the next attempt the answer is yes; votes are taken between steps and between rows."""

    def stop_at_vote(number: int) -> None:
        votes = 0

        def asked(_: Path) -> bool:
            nonlocal votes
            votes += 1
            return votes == number

        monkeypatch.setattr(training, "asked_to_stop", asked)

    return stop_at_vote


def finish(project: Project, job: TrainJob, stops: list[int], stop_at_vote: Any) -> StepResult:
    """Interrupt an attempt at each of the votes given, then let one run to its end."""
    for number in stops:
        stop_at_vote(number)
        if isinstance(result := project.attempt(job), StepResult):
            return result
    stop_at_vote(0)
    return project.train(job)


@pytest.mark.parametrize("accumulate", [True, False])
def test_interrupted_anywhere(project: Project, stop_at_vote: Any, accumulate: bool) -> None:
    """Every single vote of the training in turn: between any two steps, at checkpoints, during validations."""
    batch = BatchJob(global_samples=4, micro_samples=2 if accumulate else 4, accumulation=2 if accumulate else 1)
    job = long_job(project, batch=batch)
    whole = project.train(job)
    expected = outcome(project)
    assert [line["step"] for line in project.metrics()] == [3, 4, 6, 8, 9, 10]
    for vote in range(1, 99) if accumulate else (3, 8):
        project.forget()
        stop_at_vote(vote)
        first = project.attempt(job)
        if isinstance(first, StepResult):
            break
        again = finish(project, job, [], stop_at_vote)
        assert outcome(project) == expected, f"stopped at vote {vote}"
        assert {**again.figures, "seconds": 0} == {**whole.figures, "seconds": 0}
        assert again.summary == whole.summary
    assert vote == (18 if accumulate else 8)  # 11 before steps and at the end, 2 rows in each of 3 validations, none


def test_interrupted_many_times(project: Project, stop_at_vote: Any) -> None:
    job = long_job(project)
    project.train(job)
    expected = outcome(project)
    project.forget()
    finish(project, job, [2, 4] * 12, stop_at_vote)  # at least every other attempt gets further
    assert outcome(project) == expected
    project.forget()
    chance = random.Random(1)
    finish(project, job, [chance.randint(1, 6) for _ in range(3)], stop_at_vote)
    assert outcome(project) == expected


def test_what_an_interrupted_training_says(project: Project, stop_at_vote: Any) -> None:
    job = long_job(project)
    stop_at_vote(6)
    assert project.attempt(job) == Interrupted(done=5 - 1, total=10, unit="steps")
    assert read_state(project.root / "run", "train") == StepState("running", 4, 10)
    checkpoint = list_checkpoints(project.root / "run" / "checkpoints")
    assert [(c.step, c.interrupted, dict(c.metrics)) for c in checkpoint] == [(4, True, {})]
    heartbeat = read_heartbeat(project.root / "run")
    assert heartbeat is not None
    assert (heartbeat.done, heartbeat.message) == (4, "stopped, as asked")


def test_a_stop_file_that_is_there_from_the_start(project: Project) -> None:
    request_stop(project.root / "run")
    assert project.attempt(project.job()) == Interrupted(done=0, total=3, unit="steps")
    assert not (project.root / "run" / "checkpoints").exists()


def test_a_finished_training_returns_at_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    result = project.train(project.job())
    expected = outcome(project)
    monkeypatch.setattr(training, "load_base", None)  # it could not train if it tried
    assert project.train(project.job()) == result
    assert outcome(project) == expected
    assert read_state(project.root / "run", "train") == StepState("done", 3, 3)


def test_a_longer_training_goes_on(project: Project) -> None:
    """A constant rate does not depend on the length, so that 3 steps and 3 more are 6."""
    job = long_job(project, log_every_steps=1)
    constant = job.optimizer.model_copy(update={"decay": "constant", "steps": 8})
    project.train(job.model_copy(update={"optimizer": constant}))
    expected = outcome(project)
    project.forget()
    project.train(job.model_copy(update={"optimizer": constant.model_copy(update={"steps": 4})}))
    project.train(job.model_copy(update={"optimizer": constant}))
    lines, files = outcome(project)
    assert lines == expected[0]
    name = "step-8/adapter/adapter_model.safetensors"
    assert files[name] == expected[1][name]
    with pytest.raises(StepError, match="step-8 is past the 4 steps"):
        project.train(job.model_copy(update={"optimizer": constant.model_copy(update={"steps": 4})}))


def test_killed_between_two_checkpoints(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time to save anything: the steps since the last checkpoint come again, and so do their figures."""
    job = long_job(project, log_every_steps=1)
    project.train(job)
    expected = outcome(project)
    project.forget()
    step = training.Training._optimizer_step

    def die(self: Any, number: int) -> None:
        if number == 6:
            raise KeyboardInterrupt
        step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_optimizer_step", die)
        with pytest.raises(KeyboardInterrupt):
            project.attempt(job)
    with (project.root / "run" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "lo')  # and the disk got half a line
    assert [
        line["step"] for line in map(json.loads, (project.root / "run/metrics.jsonl").read_text().splitlines()[:-1])
    ]
    project.train(job)
    assert outcome(project) == expected


@pytest.mark.parametrize(
    "name, harm, reason",
    [
        ("optimizer.safetensors", "flip", "does not have the hash"),
        ("adapter/adapter_model.safetensors", "truncate", "bytes instead of"),
        ("progress.json", "remove", "is missing"),
        ("metrics.json", "flip", "does not have the hash"),
        ("manifest.json", "truncate", "does not hold what it should"),
        ("manifest.json", "remove", "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    project: Project, caplog: pytest.LogCaptureFixture, name: str, harm: str, reason: str
) -> None:
    job = long_job(project)
    project.train(job)
    expected = outcome(project)
    folder = project.root / "run" / "checkpoints"
    damage(folder / "step-10" / name, harm)
    with caplog.at_level(logging.INFO):
        project.train(job)
    assert f"set step-10 aside as step-10.damaged: {folder}/step-10/{name}: damaged checkpoint" in caplog.text
    assert reason in caplog.text
    assert "going on from step-8" in caplog.text
    shutil.rmtree(folder / "step-10.damaged")
    assert outcome(project) == expected


def test_never_over_again_in_silence(project: Project) -> None:
    job = long_job(project)
    project.train(job)
    folder = project.root / "run" / "checkpoints"
    for checkpoint in list_checkpoints(folder):
        damage(checkpoint.path / "job.json", "flip")
    for _ in range(2):  # asking again does not help
        with pytest.raises(StepError, match="no checkpoint here is whole") as caught:
            project.train(job)
        assert "step-10/job.json" in str(caught.value)
        assert "step-8/job.json" in str(caught.value)
    shutil.rmtree(folder)
    project.train(job)
    assert [line["step"] for line in project.metrics()] == [3, 4, 6, 8, 9, 10]


def test_what_killed_saves_leave(project: Project, stop_at_vote: Any) -> None:
    job = long_job(project)
    project.train(job)
    expected = outcome(project)
    project.forget()
    stop_at_vote(8)
    project.attempt(job)
    folder = project.root / "run" / "checkpoints"
    (newest,) = (path for path in folder.iterdir() if path.name == "step-5")
    # Killed while it replaced a checkpoint: the old one has stepped aside, the new one is not in its place yet.
    newest.rename(folder / ".step-5.replaced")
    (folder / ".step-5.partial").mkdir()
    (folder / ".step-4.deleted").mkdir()
    finish(project, job, [], stop_at_vote)
    assert outcome(project) == expected


def damage(path: Path, harm: str) -> None:
    data = bytearray(path.read_bytes())
    match harm:
        case "flip":
            data[len(data) // 2] ^= 0x01
            path.write_bytes(data)
        case "truncate":
            path.write_bytes(data[:-3])
        case "remove":
            path.unlink()


def test_another_spec_is_refused(project: Project) -> None:
    project.train(project.job())
    lora = project.job().lora
    other = project.job(
        seed=2,
        log_every_steps=2,
        optimizer=project.job().optimizer.model_copy(update={"learning_rate": 1e-3}),
        lora=lora.model_copy(update={"rank": 8, "trainable_parameters": 2 * lora.trainable_parameters}),
    )
    with pytest.raises(StepError) as caught:
        project.train(other)
    assert caught.value.code == ExitCode.USAGE
    assert "lora.rank 4 → 8 (the adapter's shapes change); seed 1 → 2 (the order" in str(caught.value)
    assert (
        "put the old values back to go on (what else is different may stay: "
        "optimizer.learning_rate 0.01 → 0.001, log_every_steps 1 → 2)"
    ) in str(caught.value)
    assert f"to start over, delete {project.root}/run/checkpoints or give the spec another `name`" in str(caught.value)
    assert project.train(project.job())  # nothing was lost


def test_values_that_come_too_late(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Never a result that looks as if it were made with values that had no part in it."""
    job = project.job()
    project.train(job)
    slower = job.optimizer.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(StepError, match=r"finished with other values: optimizer\.learning_rate 0\.01 → 0\.001"):
        project.train(project.job(optimizer=slower))
    project.train(project.job(optimizer=slower.model_copy(update={"steps": 4})))
    assert (
        "from step 4 on with other values: optimizer.learning_rate 0.01 → 0.001, optimizer.steps 3 → 4" in caplog.text
    )
    assert project.metrics()[-1]["learning_rate"] < 1e-3


def test_other_data_is_refused(project: Project) -> None:
    project.train(project.job())
    record = project.root / "store" / "store.json"
    record.write_text(record.read_text() + "\n")
    with pytest.raises(StepError, match="the prepared data"):
        project.train(project.job())


@pytest.mark.parametrize(
    "override",
    [
        "lora.rank=8", "lora.alpha=3", "lora.dropout=0.5", "lora.targets=attention_only", "lora.heads=[audio]",
        "training.learning_rate=1e-4", "training.weight_decay=0.5", "training.global_batch.samples=8",
        "training.micro_batch.samples=1", "training.steps=377", "training.max_grad_norm=2", "training.decay=linear",
        "loss.text=0.25", "loss.codebooks=[2, 1, 1, 1, 1, 1, 1, 1]", "loss.contrastive={weight: 0.1}",
        "loss.schedule={text: [{step: 0, factor: 0}, {step: 9, factor: 1}]}", "tracking.offline=true",
        "training.curriculum={start_seconds: 2, steps: 10}", "checkpoint.samples=2",
        "checkpoint.every_steps=3", "checkpoint.keep_last=9", "seed=5", "merge.select=last",
    ],
)  # fmt: skip
def test_run_and_compiler_agree_on_what_may_change(override: str) -> None:
    """`higgsc diff` says what a change means for a run that has begun; the run does what it said."""
    spec = SPECS / "quickstart.yaml"
    before, after = compile_spec(spec), compile_spec(spec, overrides=(override,))
    effect = worst(diff(before.compiled[0].ir, after.compiled[0].ir))
    old, new = (
        TrainJob.model_validate_json(emit_all(builds_of(compilation)[0])["jobs/train.json"])
        for compilation in (before, after)
    )
    refused = changed(old.model_dump(mode="json"), new)
    assert bool(refused) == (EFFECTS.index(effect) > EFFECTS.index("resume-safe")), (effect, refused)


def test_pruning_never_removes_what_is_needed(tmp_path: Path) -> None:
    from higgsc.train.checkpoints.shelf import prune_checkpoints

    keep = CheckpointJob(every_steps=1, keep_last=2)

    def save(step: int, loss: float | None) -> list[int]:
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        metrics = {} if loss is None else {"validation/audio_loss": loss}
        text = json.dumps({"step": step, "metrics": metrics, "interrupted": loss is None})
        (folder / "metrics.json").write_text(text)
        prune_checkpoints(tmp_path, keep)
        return [checkpoint.step for checkpoint in list_checkpoints(tmp_path)]

    losses = {1: 9.0, 2: 1.0, 3: 8.0, 4: 7.0, 5: 6.0, 6: 0.5, 7: 4.0}
    kept = [save(step, loss) for step, loss in losses.items()]
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7]]
    # Interrupted ones push no regular one out, and the next regular one takes their place.
    assert [save(step, None) for step in (8, 9, 10)] == [[6, 7, 8], [6, 7, 8, 9], [6, 7, 9, 10]]
    assert save(11, 9.0) == [6, 7, 11]
    keep = keep.model_copy(update={"keep_every": 4})
    assert [save(step, 9.0) for step in (12, 13, 14, 15, 16, 17)][-1] == [6, 12, 16, 17]
    keep = keep.model_copy(update={"best": "loss/text", "keep_every": None})  # which none of these has
    assert save(18, 9.0) == [6, 17, 18]
