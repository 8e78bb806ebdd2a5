"""How full rows are and what it costs the host to make them, beside padded batches and simpler packing.

    python benchmarks/packing.py [--samples 20000] [--budget 16384] [--rounds 3]

Fill is the share of the computed positions that hold a sample's token; where samples share a reference, positions per
token count what is left of them too. Everything runs on one core; tasks take turns and the best round counts, by the
processor's time. The last table makes rows of a store ahead of a model that is a pause of as many milliseconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from higgsc.catalog.codec import EXTRA_ROWS_PER_CLIP, FRAMES_PER_SECOND
from higgsc.contract.jobs import BatchJob, LoraJob, LossJob, MeshJob, ModelRef, OptimizerJob, TrainJob
from higgsc.contract.jobs import CheckpointJob as Checkpoints
from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train.rows.ahead import Ahead
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.inputs import Inputs
from higgsc.train.rows.packing import deal
from higgsc.train.rows.plan import costs_of, plan_of
from higgsc.train.rows.sequence import AudioTokens, build_sequence
from higgsc.train.rows.shared import Shared, shared_beginnings
from higgsc.train.rows.tokens import TokenPlan

TOKENS = AudioTokens(placeholder=128_016, delay=128_014, stream_bos=1024, stream_eos=1025, vocabulary=128_256)
RANKS = 8
WORK = (0.0, 0.02, 0.1)
"""Seconds that the model takes for a row."""

Ids = Any


def main() -> None:
    """Make the data, pack it in all ways, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--budget", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores, one of them used, "
        f"load {os.getloadavg()[0]:.1f}; {arguments.samples:,} samples, rows of {arguments.budget:,} tokens\n"
    )
    ratios = _filling(arguments)
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder) / "store", 2_000)
        _making(store, arguments)
        _ahead(store, arguments)
    print(ratios)


def _lengths(samples: int, targets: int) -> tuple[Ids, Shared]:
    """Log-normal seconds around 7, as in corpora of read speech; `targets` samples have a reference together."""
    random = np.random.default_rng(0)
    groups = random.permutation(samples) // targets
    seconds = np.clip(random.lognormal(np.log(7), 0.6, (2, samples)), 1, 30)
    rows = np.round(seconds * FRAMES_PER_SECOND).astype(np.int64) + EXTRA_ROWS_PER_CLIP
    text = np.round(seconds * 8).astype(np.int64)
    prefixes = (rows[0] + text[0] + 20)[groups]
    return prefixes + rows[1] + text[1] + 5, Shared(groups, prefixes)


def _filling(arguments: argparse.Namespace) -> str:
    """Positions per token of every way to make batches; returns in words the best stock one's over this project's."""
    samples, budget = arguments.samples, arguments.budget
    print(f"{'':44} {'fill':>8} {'positions/token':>16} {'samples/s':>11} {'rows or batches':>16}")
    ratios: dict[int, float] = {}
    for targets in (1, 8, samples):
        lengths, shared = _lengths(samples, targets)
        plans: list[TokenPlan] = []

        def ours(lengths: Ids = lengths, shared: Shared = shared, plans: list[TokenPlan] = plans) -> tuple[int, int]:
            batch = BatchJob(global_tokens=budget, micro_tokens=budget, accumulation=1)
            alike = shared if len(np.unique(shared.groups)) < samples else None
            plans[:] = [TokenPlan(batch, np.arange(samples), seed=0, world_size=1, positions=lengths, shared=alike)]
            found = plans[0].packing()
            return round(found.tokens / found.fill), found.rows

        ways: dict[str, Callable[[], tuple[int, int]]] = {
            "padded batches of 4": lambda lengths=lengths: _padded(lengths, 4),
            "padded batches of 4, group_by_length": lambda lengths=lengths: _padded(_by_length(lengths, 4), 4),
            "next-fit, in order": lambda lengths=lengths: _next_fit(lengths.tolist(), budget),
            "first-fit": lambda lengths=lengths: _first_fit(lengths.tolist(), budget),
            "higgsc": ours,
        }
        title = {1: "every sample its own reference", 8: "8 targets share a reference"}
        print(title.get(targets, "one reference for all"))
        found, seconds = _time(ways, arguments.rounds)
        total = int(lengths.sum())
        for name, (positions, count) in found.items():
            computed = total if name != "higgsc" else plans[0].packing().tokens
            print(
                f"  {name:42} {computed / positions:8.2%} {positions / total:16.3f} {samples / seconds[name]:11,.0f} "
                f"{count:16,}"
            )
        ratios[targets] = found["padded batches of 4, group_by_length"][0] / found["higgsc"][0]
    print()
    return f"best stock ratio: {ratios[1]:.2f}; with 8 targets to a reference: {ratios[8]:.2f}"


def _padded(lengths: Ids, size: int) -> tuple[int, int]:
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    return sum(int(batch.max()) * len(batch) for batch in batches), len(batches)


def _by_length(lengths: Ids, size: int) -> Ids:
    """As `LengthGroupedSampler` of transformers: sorted within stretches of 50 batches."""
    stretches = [np.sort(lengths[start : start + 50 * size]) for start in range(0, len(lengths), 50 * size)]
    return np.concatenate([stretch[::-1] for stretch in stretches])


def _next_fit(lengths: list[int], budget: int) -> tuple[int, int]:
    rows, room = 1, budget
    for length in lengths:
        if length > room:
            rows, room = rows + 1, budget
        room -= length
    return rows * budget, rows


def _first_fit(lengths: list[int], budget: int) -> tuple[int, int]:
    """Into the first row with room: rows stay open to the end, so a step's samples may come from anywhere."""
    rooms: list[int] = []
    for length in lengths:
        for row, room in enumerate(rooms):
            if length <= room:
                rooms[row] -= length
                break
        else:
            rooms.append(budget - length)
    return len(rooms) * budget, len(rooms)


def _time(tasks: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, Any], dict[str, float]]:
    """What each gives, and its best processor seconds."""
    found: dict[str, Any] = {}
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, task in tasks.items():
            since = time.process_time()
            found[name] = task()
            best[name] = min(time.process_time() - since, best.get(name, float("inf")))
    return found, best


def _store(path: Path, samples: int) -> Store:
    """Random codes; eight targets to a reference."""
    random = np.random.default_rng(0)
    with StoreWriter(path, made_by={}) as store:

        def clip() -> int:
            frames = round(float(np.clip(random.lognormal(np.log(7), 0.6), 1, 30)) * FRAMES_PER_SECOND)
            return store.add_clip(random.integers(0, 1024, (frames, 8)).astype(np.uint16), audio=bytes(32))

        for number in range(samples):
            if number % 8 == 0:
                reference, prefix = clip(), random.integers(0, 128_000, 76)
            middle = np.r_[128_012, random.integers(0, 128_000, 60), 128_013]
            store.add_sample(
                Segments(prefix=prefix, middle=middle, suffix=np.array([128_012, 128_009])),
                reference=reference,
                target=clip(),
                speaker="",
                validation=False,
                record={"id": str(number)},
            )
    return Store.open(path)


def _making(store: Store, arguments: argparse.Namespace) -> None:
    """One step of 8 ranks with 4 rows each: rows made, and how much more the dearest rank has to do than the mean."""
    batch = BatchJob(global_tokens=RANKS * 4 * arguments.budget, micro_tokens=arguments.budget, accumulation=4)
    shared = shared_beginnings(store, store.train)
    cost = costs_of(_job(arguments.budget))
    plan = TokenPlan(batch, store.train, seed=0, world_size=RANKS, positions=store.lengths, shared=shared, cost=cost)
    rows = plan.rows(0)
    costs = np.array([plan.cost(row) for row in rows])
    samples = np.concatenate(rows)
    fours = [samples[start : start + 4] for start in range(0, len(samples), 4)]
    ways: dict[str, Callable[[], Any]] = {
        "padded batches of 4, sample by sample": lambda: [_collate(store, four) for four in fours],
        "higgsc": lambda: [assemble(store, row, TOKENS, shared) for row in rows],
    }
    _, seconds = _time(ways, arguments.rounds)
    print(f"{len(samples)} samples made into tensors {'':15} {'ms':>8} {'samples/s':>11} {'x peer':>7}")
    for name, taken in seconds.items():
        peer = seconds["padded batches of 4, sample by sample"]
        print(f"  {name:42} {1000 * taken:8.1f} {len(samples) / taken:11,.0f} {peer / taken:7.1f}")
    dealt = costs[deal(costs, RANKS)].sum(axis=1)
    in_turn = costs.reshape(-1, RANKS).sum(axis=0)
    print(f"FLOPs of the dearest of {RANKS} ranks over the mean: {dealt.max() / dealt.mean() - 1:.3%}", end="")
    print(f"; rows dealt out in turn: {in_turn.max() / in_turn.mean() - 1:.3%}\n")


def _collate(store: Store, indices: Ids) -> tuple[torch.Tensor, ...]:
    """What a collator of a Trainer does: tensors of each sample, padded to the longest."""
    built = [build_sequence(store.sample(int(index)), TOKENS) for index in indices]
    ids = pad_sequence([torch.from_numpy(sample.input_ids) for sample in built], batch_first=True)
    mask = pad_sequence([torch.ones(len(sample.input_ids)) for sample in built], batch_first=True)
    audio = pad_sequence([torch.from_numpy(sample.audio_rows) for sample in built], batch_first=True)
    labels = torch.full((*ids.shape, 8), -100)
    for number, sample in enumerate(built):
        labels[number, torch.from_numpy(sample.audio_positions)] = torch.from_numpy(sample.audio_labels)
    return ids, mask, audio, labels


def _job(budget: int) -> TrainJob:
    """Rank 64 on all layers of the released model, on one process."""
    return TrainJob(
        higgsc="0",
        name="benchmark",
        root=".",
        run="run",
        seed=0,
        device="cpu",
        model=ModelRef(
            base="bosonai/higgs-audio-v2-generation-3B-base",
            revision=None,
            audio_tokenizer="",
            audio_tokenizer_revision=None,
        ),
        store="store",
        precision="bf16",
        mesh=MeshJob(replicate=1, shard=1),
        batch=BatchJob(global_tokens=4 * budget, micro_tokens=budget, accumulation=4),
        lora=LoraJob(rank=64, alpha=128, dropout=0, targets=("mlp.*",), module_count=0, trainable_parameters=0),
        optimizer=OptimizerJob(
            learning_rate=1e-4, warmup_steps=0, decay="constant", weight_decay=0, max_grad_norm=1, epochs=1, steps=None
        ),
        loss=LossJob(text=1, audio=1),
        checkpoint=Checkpoints(every_steps=1, keep_last=1),
        checkpoints="checkpoints",
        log_every_steps=1,
    )


def _ahead(store: Store, arguments: argparse.Namespace) -> None:
    job = _job(arguments.budget)
    print(f"{'steps of 4 rows, wall-clock ms a step':44} {'made':>8} {'waited':>8} {'hidden':>8}")
    for work in WORK:
        plan = plan_of(job, store)
        inputs = Inputs(job, store, plan, tokens=TOKENS, rank=0, device=torch.device("cpu"))
        inputs.step(0)
        with Ahead(inputs, 8) as ahead:
            for number in range(8):
                ahead.step(number)
                for _ in ahead.rows():
                    time.sleep(work)
        made, waited = (1000 * taken / ahead.steps for taken in (ahead.made, ahead.waited))
        name = f"the model takes {1000 * work:.0f} ms a row"
        print(f"  {name:42} {made:8.2f} {waited:8.2f} {max(0.0, 1 - waited / made):8.1%}")
    print()


if __name__ == "__main__":
    main()
