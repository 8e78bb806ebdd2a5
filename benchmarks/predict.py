"""What the compiler predicts of a training, memory and time, beside what the trainer then takes.

    python benchmarks/predict.py [--device cpu|cuda] [--steps 2] [--threads 2] [--clock wall|cpu]

Every case is a training by the train step itself on random weights and samples of equal length: on a GPU with the
released model's shape in bfloat16, on a CPU with small shapes in float32. `training/memory.py` says what the measured
memory is; of a CPU's, the copies that the checkpoint writer keeps are taken off, for beside a GPU they lie in the
host's memory. There are two predicted ones, with nothing fitted: the closed form of `higgsc.catalog.memory`, by which
the compiler judges, and the trace on fake tensors with which `higgsc plan --verify` compares it.

Time is predicted as the compiler does it, operations (`higgsc.catalog.arithmetic`) over a share of a rate. The rate is
that of the shape's own largest matrix product, measured in this run, beside each case. The share is fitted to one
case alone, the first, which then has no error to report; all others are predicted with it. On a GPU that the catalog
knows, what `higgsc plan` says, with its assumed share of the data sheet's peak, stands beside that.

The first step warms up, the second is measured for memory, and of the others the fastest counts, from begin to end,
on the clock that is asked for. The first case is trained a second time at the end; the faster one counts. Writes
`benchmarks/results/predict.json`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training.clock import CLOCKS, WORDS, choose, now
from training.memory import Peak
from training.rate import matmul_rate
from training.run import BASE, job_of, setup_of, train, write_store
from training.samples import SHAPES, Shape, equal_samples
from training.written import about, add_results, write

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.estimate import UTILISATION, speed
from higgsc.catalog.gpus import gpu_by_driver_name
from higgsc.catalog.higgs_audio_v2 import BASES
from higgsc.catalog.memory import memory
from higgsc.catalog.setup import Checkpointing, Sample
from higgsc.contract.jobs import BatchJob, TrainJob
from higgsc.train.prediction.trace import Lengths, peak
from higgsc.train.training import Training

SMALL = SHAPES["small"]
WIDE = replace(SMALL, hidden=768, inner=2048, layers=6, heads=12, key_value_heads=4, rank=16)
DEEP = replace(SMALL, hidden=384, inner=1024, layers=12, heads=6, key_value_heads=2, rank=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A training of which memory and time are predicted."""

    name: str
    shape: Shape
    seconds: float
    """Of the reference, and of the target."""
    samples: int
    """In a row."""
    checkpointing: Checkpointing = "none"
    accumulation: int = 1

    @property
    def sample(self) -> Sample:
        """The lengths of every sample."""
        return Sample.of_seconds(self.seconds, self.seconds)

    @property
    def tokens(self) -> int:
        """Positions of a step."""
        return self.accumulation * self.samples * self.sample.tokens


def cases(shape: str) -> list[Case]:
    """The first one is what the share of the rate is fitted to."""
    if shape == "3B":
        return [
            Case(name="24 samples", shape=SHAPES["3B"], seconds=10, samples=24),
            Case(name="12 samples", shape=SHAPES["3B"], seconds=10, samples=12),
            Case(name="4 samples", shape=SHAPES["3B"], seconds=10, samples=4),
            Case(name="8 long samples", shape=SHAPES["3B"], seconds=30, samples=8),
            Case(name="96 short samples", shape=SHAPES["3B"], seconds=2, samples=96),
            Case(name="2 rows of 12", shape=SHAPES["3B"], seconds=10, samples=12, accumulation=2),
            Case(name="24, selective", shape=SHAPES["3B"], seconds=10, samples=24, checkpointing="selective"),
            Case(name="24, full", shape=SHAPES["3B"], seconds=10, samples=24, checkpointing="full"),
        ]
    if shape == "tiny":
        return [Case(name="4 samples", shape=SHAPES["tiny"], seconds=5, samples=4)]
    return [
        Case(name="4 samples", shape=SMALL, seconds=5, samples=4),
        Case(name="1 long sample", shape=SMALL, seconds=20, samples=1),
        Case(name="10 short samples", shape=SMALL, seconds=2, samples=10),
        Case(name="2 rows of 2", shape=SMALL, seconds=5, samples=2, accumulation=2),
        Case(name="4, selective", shape=SMALL, seconds=5, samples=4, checkpointing="selective"),
        Case(name="4, full", shape=SMALL, seconds=5, samples=4, checkpointing="full"),
        Case(name="wider, 6 layers", shape=WIDE, seconds=5, samples=2),
        Case(name="narrower, 12 layers", shape=DEEP, seconds=5, samples=4),
    ]


def main() -> None:
    """Train every case, print a table, write the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    choose(arguments.clock)
    transformers.logging.set_verbosity_error()
    device = torch.device(arguments.device)
    chosen = cases(arguments.shape or ("3B" if device.type == "cuda" else "small"))
    found: list[dict[str, Any]] = []
    for case in chosen:
        found.append(_compared(case, device, arguments.steps))
        print(f"{case.name}: {found[-1]['measured_seconds']:.3f} s", file=sys.stderr, flush=True)
    if len(chosen) > 1:
        # All others rest on the first one's time, so it is taken at both ends of the run.
        found[0] = min(found[0], _compared(chosen[0], device, arguments.steps), key=lambda row: row["measured_seconds"])
    share = found[0]["operations"] / found[0]["matmul_rate"] / found[0]["measured_seconds"]
    for row in found:
        row["predicted_seconds"] = row["operations"] / (row["matmul_rate"] * share)
    figures = about(arguments, device) | {
        "clock": arguments.clock,
        "share_of_matmul_rate": share,
        "fitted_to": chosen[0].name,
        "cases": found,
    }
    text = "\n".join(_table(figures))
    write(arguments, "predict", figures, text)


def _compared(case: Case, device: torch.device, steps: int) -> dict[str, Any]:
    """A case's figures: predicted ones from its shape alone, measured ones from training it."""
    samples = case.samples * case.accumulation
    job = job_of(
        case.shape,
        device=device.type,
        batch=BatchJob(global_samples=samples, micro_samples=case.samples, accumulation=case.accumulation),
        steps=2 + steps,
        checkpointing=case.checkpointing,
    )
    setup, sample = setup_of(case.shape, job), case.sample
    seconds: list[float] = []
    rates = [matmul_rate(device, case.shape)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "store", equal_samples(case.shape, sample, samples))
        (folder / "train.json").write_text(job.model_dump_json(), "utf-8")
        highest, copies = Peak(device), 0

        @contextmanager
        def watch(training: Training, number: int) -> Iterator[None]:
            nonlocal copies
            if number == 1:
                copies = training._saver.size if device.type == "cpu" else 0
                with highest.step():
                    yield
                return
            since = now(device)
            yield
            if number > 1:
                seconds.append(now(device) - since)

        train(folder / "train.json", case.shape, watch)
    rates.append(matmul_rate(device, case.shape))
    per_token = flops_per_token(
        setup,
        keys=sample.tokens / 2,
        audio_share=sample.audio_rows / sample.tokens,
        labelled=sample.labelled_rows / sample.tokens,
    )
    gpu = gpu_by_driver_name(torch.cuda.get_device_name()) if device.type == "cuda" else None
    planned = None if gpu is None else speed(setup, case.seconds, case.samples, gpu, steps=None).step_seconds
    return {
        "case": asdict(case),
        "tokens": case.tokens,
        "measured_bytes": highest.bytes - copies,
        "bytes_of_copies_for_checkpoints": copies,
        "predicted_bytes": memory(setup, sample, case.samples).total,
        "traced_bytes": _traced(case, job),
        "measured_seconds": min(seconds),
        "all_measured_seconds": seconds,
        "matmul_rate": max(rates),
        "operations": per_token * case.tokens,
        "planned_seconds": planned,
    }


def _traced(case: Case, job: TrainJob) -> int:
    """Bytes at the peak, by the trace; the catalog is told of the base's shape, which it knows of released ones."""
    with patch.dict(BASES, {BASE: case.shape.catalog}):
        return sum(peak(job, Lengths(**asdict(case.sample))).values())


def _table(figures: dict[str, Any]) -> Iterator[str]:
    yield f"# {figures['date'][:10]}, {figures['hardware']}, load {figures['load']:.1f}"
    yield f"# {figures['command']}"
    yield "# " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    yield f"# time: {WORDS[figures['clock']]}"
    yield ""
    yield f"{'':22}{'':>8} {'memory, MB':>45} {'time of a step, s':>27} {'matmul':>12}"
    names = ("measured", "computed", "error", "traced", "error", "measured", "computed", "error")
    yield f"{'case':22}{'tokens':>8} " + " ".join(f"{name:>8}" for name in names) + f" {'GFLOP/s':>12}"
    worst = {"memory": 0.0, "traced": 0.0, "time": 0.0}
    for number, row in enumerate(figures["cases"]):
        measured, seconds = row["measured_bytes"], row["measured_seconds"]
        errors = {
            "memory": row["predicted_bytes"] / measured - 1,
            "traced": row["traced_bytes"] / measured - 1,
            "time": row["predicted_seconds"] / seconds - 1,
        }
        worst = {name: max(found, abs(errors[name])) for name, found in worst.items()}
        time = f"{errors['time']:+8.1%}" if number else f"{'fitted':>8}"
        yield (
            f"{row['case']['name']:22}{row['tokens']:8,} {measured / 1e6:8.0f} {row['predicted_bytes'] / 1e6:8.0f} "
            f"{errors['memory']:+8.1%} {row['traced_bytes'] / 1e6:8.0f} {errors['traced']:+8.1%} {seconds:8.3f} "
            f"{row['predicted_seconds']:8.3f} {time} {row['matmul_rate'] / 1e9:12,.0f}"
        )
    yield ""
    yield (
        f"time is computed as operations / ({figures['share_of_matmul_rate']:.1%} of the matmul rate beside the case), "
        f"the share fitted to the first case alone"
    )
    for row in figures["cases"]:
        if row["planned_seconds"] is not None:
            planned, measured = row["planned_seconds"], row["measured_seconds"]
            yield (
                f"higgsc plan, at an assumed {UTILISATION:.0%} of the data sheet's peak, {row['case']['name']}: "
                f"computed {planned:.3f} s, measured {measured:.3f} s, {planned / measured - 1:+.1%}"
            )
    yield f"largest error: memory {worst['memory']:.1%} (traced {worst['traced']:.1%}), time {worst['time']:.1%}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=2, help="timed ones, behind the first two")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="3B on a GPU and small ones on a CPU if not given")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a busy machine, with --threads 1")
    add_results(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
