"""Dies at every call that changes which files there are, in turn, and goes on from what is left.

A call is a flush, a rename or a deletion, in a given folder. This process imports torch once and forks a child for
every attempt; the child counts its calls and kills itself (SIGKILL, as the kernel does when memory runs out) right
before one of them. Where a death leaves the same files as one before, all the difference being a flush that was not
made, the next attempt would be the same again. Prints one line of JSON for every call: where it died, what was found.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

from higgsc.contract.jobs import StepContext, TrainJob, load_job
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train import step, training
from higgsc.train.checkpoints.checkpoint import verify_checkpoint

CALLS = ("fsync", "rename", "replace", "unlink", "rmdir")


@dataclass(frozen=True)
class Found:
    """What a death has left."""

    call: str
    """The call that was not made."""
    whole: list[str]
    """What lies there under its final name; each was found whole."""
    taken: str
    """What the next attempt took it up from."""
    after: Any
    """What the next attempt came to."""


def forked(work: Callable[[], object]) -> bool:
    """Do something in a child; whether it came to its end, rather than killing itself."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, "the child failed; its traceback is above"
    return True


def deadly(number: int, within: Path, note: Path, work: Callable[[], object]) -> Callable[[], object]:
    """`work`, but the process dies at its call of that number (from 0) in a folder, and leaves a note of which it was.

    Args:
        number: Of the call.
        within: Calls about other paths are not counted.
        note: A file.
        work: Makes the calls.
    """
    counted = 0

    def guard(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(what: Any, *others: Any, **options: Any) -> Any:
            nonlocal counted
            path = _path(what, options.get("dir_fd"))
            if path.is_relative_to(within):
                if counted == number:
                    note.write_text(f"{name} {path.relative_to(within)}")
                    os.kill(os.getpid(), signal.SIGKILL)
                counted += 1
            return call(what, *others, **options)

        return guarded

    def run() -> None:
        for name in CALLS:
            setattr(os, name, guard(name, getattr(os, name)))
        work()

    return run


def _path(what: Any, folder: int | None) -> Path:
    """The path that a call is about: by its name, by its descriptor, or by its name in an open folder."""
    if isinstance(what, int):
        return Path(f"/proc/self/fd/{what}").readlink()
    return Path(what) if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / what


def deaths(within: Path, prepare: Callable[[], object], work: Callable[[], object]) -> Iterator[str]:
    """Die at every call of `work` in a folder in turn; each time `prepare` comes before, and the call is given out."""
    number, note = 0, within.with_name("died-at")
    while True:
        prepare()
        if forked(deadly(number, within, note, work)):
            return
        yield note.read_text()
        number += 1


def contents(folder: Path) -> dict[str, str]:
    """Its files; of those that hold times, only that they are there."""
    files = sorted(path for path in folder.rglob("*"))
    timed = ("progress.json", "manifest.json")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().hex()
        if path.is_file() and path.name not in timed
        else ""
        for path in files
    }


def train(root: Path) -> Iterator[Found]:
    """A training of `train.json` in `root`, from an interrupted checkpoint that it replaces, then to the end."""
    path, run, begun = root / "train.json", root / "run", root / "begun"
    job, checkpoints = load_job(path), run / "checkpoints"
    assert isinstance(job, TrainJob)
    context = StepContext.of(path, job)

    def attempt() -> None:
        step.run(job, context)

    def taken_up() -> None:
        find = step.find_start

        def noted(*arguments: Any, **options: Any) -> int:
            start = find(*arguments, **options)
            (root / "taken").write_text(f"step-{start}")
            return start

        with patch.object(step, "find_start", noted):
            attempt()

    def outcome() -> Any:
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        return steps, contents(checkpoints)

    attempt()  # not in a child, so that whatever is imported on the way is there for all of them
    expected = outcome()
    shutil.rmtree(run)
    votes = iter(range(job.checkpoint.every_steps + 1))
    # Where a checkpoint is due, but before it is validated: the next attempt saves one of the same name.
    with patch.object(training, "asked_to_stop", lambda _: next(votes) == job.checkpoint.every_steps):
        attempt()
    run.rename(begun)
    gc.collect()  # the writer's thread ends with the training that it belongs to
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(10)
    assert threading.active_count() == 1, "a fork has only the thread that forks"

    def prepare() -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(begun, run)

    known: dict[str, tuple[str, bool]] = {}
    for call in deaths(checkpoints, prepare, attempt):
        whole = sorted(folder.name for folder in checkpoints.glob("step-*"))
        for name in whole:
            verify_checkpoint(checkpoints / name)
        left = json.dumps([contents(checkpoints), len((run / "metrics.jsonl").read_text().splitlines())])
        if left not in known:
            assert forked(taken_up)
            known[left] = (root / "taken").read_text(), outcome() == expected
        yield Found(call, whole, *known[left])


def store(root: Path) -> Iterator[Found]:
    """A store that takes the place of an earlier one."""
    path = root / "stores" / "written"

    def write(seed: int) -> None:
        random = np.random.default_rng(seed)
        with StoreWriter(path, made_by={"seed": seed}) as writer:
            clip = writer.add_clip(random.integers(0, 1024, (4, 8)).astype(np.uint16), audio=bytes(32))
            words = np.arange(3)
            writer.add_sample(
                Segments(prefix=words, middle=words, suffix=words),
                reference=clip,
                target=clip,
                speaker="a",
                validation=False,
                record={"id": "one"},
            )

    def seed() -> int:
        made: int = Store.open(path, verify=True).made_by["seed"]
        return made

    def prepare() -> None:
        for left in (path, *path.parent.glob(".written.*")):
            shutil.rmtree(left, ignore_errors=True)
        write(1)

    for call in deaths(path.parent, prepare, lambda: write(2)):
        try:
            found = [str(seed())]
        except StepError as error:
            if error.code != ExitCode.MISSING_INPUT:  # nothing, rather than half of it
                raise
            found = []
        write(2)
        yield Found(call, found, "", seed() == 2 and not list(path.parent.glob(".written.*")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread of its own
    scenario = {"train": train, "store": store}[sys.argv[1]]
    for line in scenario(Path(sys.argv[2])):
        print(json.dumps(asdict(line)), flush=True)
