"""Real processes, really stopped, killed, hung and out of disk."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from higgsc.contract.jobs import BatchJob, CheckpointJob, MeshJob, TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import read_receipt
from higgsc.contract.state import StepState, read_state
from higgsc.data.store import Store
from higgsc.train import training
from higgsc.train.checkpoints.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint, verify_checkpoint
from higgsc.train.checkpoints.shelf import find_newest_whole, prune_checkpoints, recover_checkpoints
from higgsc.train.faults.guard import SKIPPED_FILE
from higgsc.train.faults.watchdog import Watchdog
from higgsc.train.model.build import adapter_parameters, add_lora
from higgsc.train.parallel.contact import STEP_TIMEOUT, step_timeout
from higgsc.train.rows.plan import plan_of

from .conftest import Project
from .test_checkpoint import LORA, REF
from .test_resume import finish, long_job, outcome, stop_at_vote  # noqa: F401

RUN_STEP = ("-m", "higgsc", "run-step")
SECONDS = 120.0


class Process:
    """A training in processes of its own."""

    def __init__(self, project: Project, job: TrainJob, *, ranks: int = 1, program: tuple[str, ...] = RUN_STEP) -> None:
        self.project = project
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)) if ranks > 1 else ()
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self.log = project.root / "process.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *program, str(project.write(job))],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (*self.children(), self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def children(self) -> list[int]:
        """The processes that this one started; under torchrun, the ranks in their order."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that happens while it runs."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output()}"
            assert time.monotonic() < end, f"waited in vain until {what}:\n{self.output()}"
            time.sleep(0.005)

    def until_saved(self, step: int) -> None:
        """Wait until a checkpoint of that step or a later one is there."""

        def saved() -> bool:
            state = read_state(self.project.root / "run", "train")
            return state is not None and state.done >= step

        self.until(saved, f"step {step} was saved")

    def listens(self) -> bool:
        """Whether it has installed a handler for SIGUSR2."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught, 16) >> (signal.SIGUSR2 - 1) & 1)

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def output(self) -> str:
        return self.log.read_text()[-6000:]


def two_ranks(project: Project, **changes: Any) -> TrainJob:
    """Forty steps on two processes."""
    job = long_job(project)
    parts = {
        "mesh": MeshJob(replicate=2, shard=1),
        "batch": BatchJob(global_samples=4, micro_samples=1, accumulation=2),
        "optimizer": job.optimizer.model_copy(update={"steps": 40}),
        "checkpoint": CheckpointJob(every_steps=5, keep_last=2),
    }
    return long_job(project, **(parts | changes))


@pytest.mark.slow
def test_two_ranks_stopped_and_killed(project: Project) -> None:
    """One rank is told to stop, then one rank is killed; what comes out is what two undisturbed ranks make."""
    job = two_ranks(project)
    with Process(project, job, ranks=2) as whole:
        assert whole.wait() == 0, whole.output()
    expected = outcome(project)
    project.forget()

    run = project.root / "run"
    with Process(project, job, ranks=2) as stopped:
        stopped.until_saved(5)
        os.kill(stopped.children()[1], signal.SIGUSR2)  # the other rank does not know; they have to agree
        assert stopped.wait() == 0, stopped.output()
        assert "as asked; the same command goes on from there" in stopped.output()
    state = read_state(run, "train")
    assert state is not None
    assert state.phase == "interrupted"
    assert 5 <= state.done < 40
    assert read_receipt(run, "train") is None

    with Process(project, job, ranks=2) as killed:
        killed.until_saved(state.done + 3)
        os.kill(killed.children()[0], signal.SIGKILL)
        before = time.monotonic()
        assert killed.wait() != 0
        assert time.monotonic() - before < 10
    assert read_receipt(run, "train") is None

    with Process(project, job, ranks=2) as finished:
        assert finished.wait() == 0, finished.output()
        assert "going on from step-" in finished.output()
    assert outcome(project) == expected
    assert read_receipt(run, "train") is not None
    assert read_state(run, "train") == StepState("done", 40, 40)


@pytest.mark.slow
def test_going_on_with_another_mesh(project: Project, stop_at_vote: Any) -> None:  # noqa: F811
    """One process, then two that share the base between them, then one again: the same samples in each step."""
    job = long_job(project, log_every_steps=1, lora=project.job().lora)  # dropout would differ
    project.train(job)
    lines, weights = project.metrics(), project.adapter(10)
    project.forget()
    stop_at_vote(3)
    project.attempt(job)
    sharded = two_ranks(
        project,
        mesh=MeshJob(replicate=1, shard=2),
        lora=job.lora,
        log_every_steps=1,
        optimizer=job.optimizer,
        checkpoint=CheckpointJob(every_steps=1, keep_last=9),
    )
    with Process(project, sharded, ranks=2) as two:
        two.until_saved(5)
        os.kill(two.children()[0], signal.SIGUSR2)
        assert two.wait() == 0, two.output()
        assert "going on from step-2" in two.output()
    assert read_state(project.root / "run", "train") != StepState("done", 10, 10)
    finish(project, job, [], stop_at_vote)
    for line, expected in zip(project.metrics(), lines, strict=True):
        for name in ("step", "loss/total", "loss/audio_codebook_5", "loss/text", "grad_norm"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5), (line["step"], name)
    for name, tensor in project.adapter(10).items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5)


def test_signals_before_and_while_torch_is_imported(project: Project) -> None:
    """Ctrl-C on torchrun reaches a worker twice, and then the grace period of a scheduler begins."""
    with Process(project, project.job()) as process:
        process.until(process.listens, "it listens")
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):
            os.kill(process.process.pid, number)
            time.sleep(0.05)  # two signals of a kind at the same instant are one
        assert process.wait() == 0, process.output()
        assert "train: stopped after 0 of 3 steps, as asked" in process.output()
    assert read_state(project.root / "run", "train") == StepState("interrupted", 0, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, of which a test fills what it likes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield disk
    subprocess.run(["umount", disk], check=True)


# TensorBoard writes from a thread of its own, which dies of it too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk(project: Project, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full at once, full at a later checkpoint, and full for the figures: in no case is a whole checkpoint lost."""
    (project.root / "run").symlink_to(small_disk)
    job, ballast = long_job(project), small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    with pytest.raises(StepError, match=r"a checkpoint takes \d\.\d MB, and 0\.\d MB are free there") as caught:
        project.train(job)
    assert caught.value.code == ExitCode.IO
    ballast.unlink()

    def fills_up(at: int, room: int) -> Callable[[Any, int], None]:
        def stepping(self: Any, number: int) -> None:
            if number == at:
                ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
            step(self, number)

        return stepping

    step, folder = training.Training._optimizer_step, small_disk / "checkpoints"
    for at, room in ((6, 200_000), (5, 0)):
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr(training.Training, "_optimizer_step", fills_up(at, room))
        with pytest.raises(StepError) as caught:
            project.train(job)
        assert caught.value.code == ExitCode.IO
        assert "cannot write: No space left on device (0." in str(caught.value)
        assert str(caught.value).startswith(f"{project.root}/run")
        assert not list(small_disk.glob(".*"))
        assert [path.name for path in folder.iterdir()] == ["step-4"]
        verify_checkpoint(folder / "step-4")
        ballast.unlink()
    monkeypatch.setattr(training.Training, "_optimizer_step", step)
    project.train(job)


def test_no_room_for_a_checkpoint(project: Project, stop_at_vote: Any) -> None:  # noqa: F811
    job = long_job(project)
    project.train(job)
    expected = outcome(project)
    project.forget()
    stop_at_vote(4)
    project.attempt(job)
    folder = project.root / "run" / "checkpoints"
    (kept,) = list_checkpoints(folder)
    limit = (kept.path / "optimizer.safetensors").stat().st_size - 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        process = Process(project, job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with process:
        assert process.wait() == ExitCode.IO, process.output()
        assert "cannot write: File too large" in process.output()
        assert "Traceback" not in process.output()
    assert [path.name for path in folder.iterdir()] == [kept.path.name]
    verify_checkpoint(kept.path)
    finish(project, job, [], stop_at_vote)
    assert outcome(project) == expected


@pytest.mark.slow
def test_a_rank_that_hangs_fails_the_step(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STEP_TIMEOUT, "3")
    job = two_ranks(project, optimizer=project.job().optimizer.model_copy(update={"steps": 10_000}))
    with Process(project, job, ranks=2) as process:
        process.until_saved(5)
        hung = process.children()[1]
        os.kill(hung, signal.SIGSTOP)
        before = time.monotonic()
        process.until(lambda: "lost contact with the other processes" in process.log.read_text(), "the other noticed")
        assert time.monotonic() - before < 15
        os.kill(hung, signal.SIGKILL)  # torchrun would insist after 30 seconds
        assert process.wait() != 0
    logs = project.root / "run" / "logs"
    assert f"{logs}/stacks-*.txt" in process.log.read_text()
    stacks = (logs / "stacks-0.txt").read_text()
    assert stacks.startswith("Timeout (0:00:02.4")
    assert "all_reduce" in stacks


def test_a_silent_process_writes_where_it_is(tmp_path: Path) -> None:
    """Without the interpreter's help: a process that hangs in a library holds its lock."""
    with Watchdog(tmp_path / "logs", 3, timeout=0.1) as dog:
        time.sleep(0.2)  # before the first step, whatever takes long is no fault
        assert dog.path.read_text() == ""
        dog.heard()
        time.sleep(0.2)
    assert "test_a_silent_process_writes_where_it_is" in dog.path.read_text()
    with Watchdog(tmp_path / "logs", 4, timeout=60) as other:
        other.heard()
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["stacks-3.txt"]


@pytest.mark.parametrize("value", ["soon", "0", "nan", "1e300", "-1"])
def test_a_timeout_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STEP_TIMEOUT, value)
    with pytest.raises(StepError, match=f"HIGGSC_STEP_TIMEOUT is `{value}`"):
        step_timeout()


def test_a_store_that_changed_under_a_run(project: Project) -> None:
    """One bit of a code: one decision, before the first step, that names the file."""
    codes = project.root / "store" / "codes.u16"
    data = bytearray(codes.read_bytes())
    data[100] ^= 0x01
    codes.write_bytes(data)
    with pytest.raises(StepError, match=r"this file is not the file that store\.json describes") as caught:
        project.train(project.job())
    assert caught.value.path == codes


def test_a_sample_that_cannot_be_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read while it trains is not checked again, but said by name."""
    texts = project.root / "store" / "text.u32"
    step = training.Training._optimizer_step

    def harmed(self: Any, number: int) -> None:
        if number == 1:
            with texts.open("r+b") as stream:
                stream.write(b"\x7f" * texts.stat().st_size)
        step(self, number)

    monkeypatch.setattr(training.Training, "_optimizer_step", harmed)
    with pytest.raises(StepError, match=r"sample \S+: text id \d+ is not in the base's vocabulary"):
        project.train(project.job())


@pytest.fixture
def tiny_adapter(model: Any) -> PeftModel:
    return add_lora(model, LORA, seed=0)


def test_killed_at_any_moment_of_saving(tiny_adapter: PeftModel, tmp_path: Path) -> None:
    """A child saves one checkpoint after the other, in part over ones that are there, until it is killed."""
    names = adapter_parameters(tiny_adapter)
    chance = random.Random(0)
    sizes = set()
    heard, said = os.pipe()

    def save_for_ever() -> None:
        for number in range(10**6):
            step = number // 2 + 1  # each one twice
            weights = {name: torch.full_like(parameter, step) for name, parameter in names.items()}
            save_checkpoint(tmp_path, step, model=tiny_adapter, weights=weights, ref=REF, metrics={"loss/audio": -step})
            prune_checkpoints(tmp_path, CheckpointJob(every_steps=1, keep_last=2))
            os.write(said, b".")

    for _ in range(25):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        child = os.fork()
        if child == 0:
            try:
                save_for_ever()
            finally:
                os._exit(1)
        # Counted in saves, not in seconds: however slow the machine, some of them die late.
        for _ in range(chance.randrange(5)):
            os.read(heard, 1)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while select.select([heard], [], [], 0)[0]:
            os.read(heard, 1)
        published = {path.name for path in tmp_path.glob("step-*")} | {
            path.name for path in tmp_path.glob(".*.replaced")
        }
        recover_checkpoints(tmp_path)
        newest = find_newest_whole(tmp_path, lambda path: path)
        sizes.add(len(published))
        if not published:
            assert newest is None
            continue
        assert newest is not None
        steps = [int(name.strip(".").removeprefix("step-").removesuffix(".replaced")) for name in published]
        assert read_checkpoint(newest).step == max(steps)
        assert not list(tmp_path.glob("*.damaged"))
        assert not list(tmp_path.glob(".*"))
    assert max(sizes) >= 2


POISONED = """
import os, sys
from higgsc.cli import main
from higgsc.train.checkpoints import checkpoint
from higgsc.train import training
from higgsc.train.objective.loss import LossModule, LossSums

forward, seed, save = LossModule.forward, training.seed_dropout, checkpoint.save_file
now = []

def seeded(number, rank, batch):
    now[:] = [batch]
    seed(number, rank, batch)

def poisoned(self, batch, compared=None):
    sums = forward(self, batch, compared)
    bad = self.training and now == [3] and os.environ["RANK"] == "1"
    return LossSums(sums.audio * float("nan"), sums.text) if bad else sums

def full(tensors, path, **rest):
    if "step-8" in str(path):
        raise OSError(28, "No space left on device", str(path))
    save(tensors, path, **rest)

training.seed_dropout, LossModule.forward, checkpoint.save_file = seeded, poisoned, full
sys.argv.insert(1, "run-step")
main()
"""


@pytest.mark.slow
def test_two_ranks_decide_alike(project: Project) -> None:
    """A loss that is not finite on one of them, then a checkpoint that the other one cannot write."""
    program = project.root / "poisoned.py"
    program.write_text(POISONED)
    job = two_ranks(project, checkpoint=CheckpointJob(every_steps=1, keep_last=9), log_every_steps=1)
    with Process(project, job, ranks=2, program=(str(program),)) as process:
        assert process.wait() != 0
        output = process.log.read_text()
    lines = project.metrics()
    assert [line["skipped_steps"] for line in lines[:6]] == [0, 0, 0, 1, 1, 1]
    assert all(torch.equal(tensor, project.adapter(3)[name]) for name, tensor in project.adapter(4).items())
    assert any(not torch.equal(tensor, project.adapter(4)[name]) for name, tensor in project.adapter(5).items())
    store = Store.open(project.root / "store")
    rows = plan_of(job, store).micro_batches(3, 1)
    (skipped,) = (json.loads(line) for line in (project.root / "run" / SKIPPED_FILE).read_text().splitlines())
    assert skipped["samples"] == [store.record(i)["id"] for i in sorted(np.concatenate(rows).tolist())]
    assert "cannot write: No space left on device" in output
    assert "the first process failed; its message says why" in output
    folder = project.root / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step}" for step in range(1, 8)]
