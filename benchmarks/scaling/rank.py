"""One rank of `scale.py`: trains by every way in turn, and writes what each step cost it.

    python benchmarks/scaling/rank.py FOLDER

FOLDER holds `plan.json` and what it names, made by `scale.py`. The environment is torchrun's: RANK, WORLD_SIZE,
LOCAL_RANK and MASTER_ADDR. A way that trains apart does so on every rank at the same time, each by itself: it costs
what a rank costs that has to share the machine, but nothing to say.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import stock
from training.run import train
from training.samples import SHAPES, Shape, equal_samples

from higgsc.catalog.setup import Sample
from higgsc.train.rows.sequence import AudioTokens, build_sequence
from scaling.traffic import Collectives, received

WARM, COUNTED = 0, 1
"""Steps that are not timed: in the second one the collectives are counted, which slows it down."""
UNTIMED = 3
"""Those two, and the last one, which has no begin behind it."""


class Meter:
    """Cost of each step from its begin to the begin of the next: processor time, wall-clock time, bytes received."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[float, float, int]] = []
        self._collectives = Collectives()

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._marks.append((time.process_time(), time.perf_counter(), received()))
        if step == COUNTED:
            self._collectives.__enter__()  # type: ignore[no-untyped-call]

    def end(self, step: int) -> None:
        """A step ends."""
        if step == COUNTED:
            self._collectives.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def figures(self) -> dict[str, Any]:
        """The timed steps, in order, and what the counted one handed to collectives."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))[COUNTED + 1 :]
        cpu, wall, taken = ([b[i] - a[i] for a, b in pairs] for i in range(3))
        return {"cpu": cpu, "wall": wall, "received": taken, "collectives": self._collectives.calls}


class _Steps(TrainerCallback):  # type: ignore[misc]
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._meter.begin(state.global_step)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._meter.end(state.global_step - 1)


def main(folder: Path) -> None:
    """Train by every way, all ranks at the same time."""
    plan = json.loads((folder / "plan.json").read_text("utf-8"))
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(plan["threads"])
    transformers.logging.set_verbosity_error()
    shape, device = SHAPES[plan["shape"]], torch.device(plan["device"])
    for way in plan["ways"]:
        together = way["ranks"] > 1
        # A store of its own for each group: in one for all, ranks would find the addresses of the group before.
        os.environ |= {"WORLD_SIZE": str(way["ranks"]), "RANK": str(rank if together else 0)}
        os.environ |= {"MASTER_PORT": str(way["port"]), "LOCAL_RANK": "0"}
        if not together:
            del os.environ["LOCAL_RANK"]
        meter = Meter(device)
        _meet(folder, way["name"], rank, ranks)
        if way["job"] is None:
            _train_by_peer(shape, device, plan, meter, way["ranks"])
        else:
            _train_by_higgsc(folder / (way["job"] if together else f"{way['job']}-{rank}"), shape, meter)
        (folder / f"{way['name']}-{rank}.json").write_text(json.dumps(meter.figures()), "utf-8")


def _meet(folder: Path, name: str, rank: int, ranks: int) -> None:
    """Wait until all ranks are here, so that they work at the same time also where they say nothing to each other."""
    (folder / f"{name}-{rank}.here").touch()
    while not all((folder / f"{name}-{other}.here").exists() for other in range(ranks)):
        time.sleep(0.02)


def _train_by_higgsc(folder: Path, shape: Shape, meter: Meter) -> None:
    @contextmanager
    def watch(_: Any, step: int) -> Iterator[None]:
        meter.begin(step)
        yield
        meter.end(step)

    train(folder / "train.json", shape, watch)


def _train_by_peer(shape: Shape, device: torch.device, plan: dict[str, Any], meter: Meter, ranks: int) -> None:
    """transformers' `Trainer` with PEFT, which wraps the model in DistributedDataParallel where there are several."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = stock.adapted(shape.model(device=device, dtype=dtype), shape.rank)
    tokens = AudioTokens.of(model.config)
    steps, size = plan["steps"] + UNTIMED, plan["samples"]
    made = equal_samples(shape, Sample(**plan["lengths"]), steps * size * ranks)
    sequences = [build_sequence(sample, tokens) for sample in made]
    batches = [sequences[start : start + size] for start in range(0, len(sequences), size)]
    with tempfile.TemporaryDirectory() as output:
        stock.train(
            model, batches, learning_rate=2e-4, checkpointing=False, bf16=device.type == "cuda", folder=output,
            ranks=ranks, callbacks=[_Steps(meter)],
        )  # fmt: skip
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
