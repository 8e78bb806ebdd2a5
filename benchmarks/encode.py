"""How fast recordings become codes, and codes rows for the model.

    python benchmarks/encode.py [--clips 200] [--samples 4000] [--rounds 3] [--device cpu]

Encoding is compared with transformers' processor, one clip after the other as its own loop does it, at equal codes
(they are checked); reading with laying out each sample and putting the sequences together. Tasks take turns, the best
round counts, by the processor time of this process, which a busy machine distorts less than the clock.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from higgsc.contract.jobs import DataLimits, DataSource, ModelRef, PrepareJob, StepContext
from higgsc.data.cache import CodeCache
from higgsc.data.clips import Clip, ClipEncoder, recipe_of
from higgsc.data.codec import Codec, audio_tokenizer_class
from higgsc.data.layout import Segments
from higgsc.data.places import Places
from higgsc.data.records import AudioSpan
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train.model.builtin import tiny_path
from higgsc.train.rows.assemble import assemble
from higgsc.train.rows.order import epoch_order
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

TOKENS = AudioTokens(placeholder=128_016, delay=128_014, stream_bos=1024, stream_eos=1025, vocabulary=128_256)
LENGTHS = ((1, 40), (2, 60), (5, 90), (10, 150))
"""Seconds of a clip, and text ids of a sample."""
PACKS = (8, 32, 128)
"""Samples of a row."""


def main() -> None:
    """Make the data, time everything, print tables."""
    arguments = _arguments()
    torch.set_num_threads(1)
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__} on {arguments.device}, {os.cpu_count()} cores, "
        f"one of them used, load {os.getloadavg()[0]:.1f}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        _encoding(Path(folder), arguments)
        _reading(Path(folder), arguments)


def _encoding(folder: Path, arguments: argparse.Namespace) -> None:
    random = np.random.default_rng(0)
    paths = [folder / f"{number}.wav" for number in range(arguments.clips)]
    for path in paths:  # whole frames: for others the processor sets the two branches of the codec apart
        soundfile.write(path, random.normal(0, 0.1, 960 * int(random.integers(25, 100))), 24_000)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    seconds = sum(soundfile.info(path).duration for path in paths)
    codec = Codec.load(tiny_path("audio_tokenizer"), device=arguments.device)
    processor = _processor(arguments.device)
    job = PrepareJob(
        higgsc="0",
        name="benchmark",
        root=".",
        run="run",
        seed=0,
        device=arguments.device,
        model=ModelRef(base="", revision=None, audio_tokenizer="", audio_tokenizer_revision=None),
        sources=(DataSource(path="data.json", format="auto"),),
        limits=DataLimits(min_seconds=0.1, max_seconds=30, max_bad_fraction=0),
        cache="cache",
        validation_fraction=0,
        store="store",
    )
    context = StepContext(job_path=folder / "job.json", root=folder, rank=0, world_size=1)
    caches = iter(range(1000))

    def peer() -> list[Any]:
        made = []
        for path in paths:
            wave, rate = soundfile.read(path, dtype="float32")
            inputs = processor.feature_extractor(wave, sampling_rate=rate, return_tensors="pt")
            with torch.inference_mode():
                codes = processor.audio_tokenizer.encode(inputs["input_values"].to(arguments.device)).audio_codes
            made.append(codes[0].T.cpu().numpy())
        return made

    def ours(cache_folder: Path) -> list[Any]:
        with CodeCache(cache_folder, recipe_of(codec)) as cache:
            encoder = ClipEncoder(codec, cache, places=Places(job, context), limits=job.limits)
            clips = [clip for _, clip in encoder.clips(AudioSpan(path) for path in paths)]
            return [cache.codes(clip.entry) for clip in clips if isinstance(clip, Clip)]

    ours(folder / "full")
    best = _time(
        {
            "processor, one by one": peer,
            "higgsc": lambda: ours(folder / f"cache-{next(caches)}"),
            "higgsc, all encoded before": lambda: ours(folder / "full"),
        },
        arguments.rounds,
    )
    for one, other in zip(peer(), ours(folder / "full"), strict=True):
        np.testing.assert_array_equal(one, other)
    print(f"encoding {len(paths)} WAV files, {seconds:.0f} s of audio, with the tiny codec; codes are equal")
    print(f"{'':30} {'CPU s':>8} {'clips/s':>10} {'audio s/s':>10} {'x peer':>8}")
    for name, taken in best.items():
        ratio = best["processor, one by one"] / taken
        print(f"{name:30} {taken:8.2f} {len(paths) / taken:10,.0f} {seconds / taken:10,.0f} {ratio:8.1f}")
    print()


def _processor(device: str) -> Any:
    from transformers import HiggsAudioV2Processor

    audio_tokenizer_class()
    processor = HiggsAudioV2Processor.from_pretrained(tiny_path("model"))
    processor.audio_tokenizer.to(device).eval()
    return processor


def _reading(folder: Path, arguments: argparse.Namespace) -> None:
    count = arguments.samples
    taken = _time({"": lambda: epoch_order.__wrapped__(0, 0, 1_000_000)}, arguments.rounds)[""]
    print(f"the order of an epoch of 1,000,000 samples: {taken:.2f} s, {1e6 / taken:,.0f} samples/s\n")
    print(f"rows for the model out of a store of {count:,} samples, in random order")
    head = ("clips", "samples a row", "samples/s", "positions/s", "GB/s", "memcpy GB/s", "x one by one")
    print("{:>6} {:>14} {:>12} {:>14} {:>6} {:>12} {:>13}".format(*head))
    for seconds, words in LENGTHS:
        store = _store(folder / f"store-{seconds}", count, 25 * seconds, words)
        order = epoch_order(0, 0, count)
        few = order[: count // 20]
        for size in PACKS:
            best = _time(
                {
                    "one by one": partial(_one_by_one, store, _rows(few, size)),
                    "higgsc": partial(_together, store, _rows(order, size)),
                },
                arguments.rounds,
            )
            rate, peer = len(order) / best["higgsc"], len(few) / best["one by one"]
            positions = rate * float(store.lengths.mean())
            row = assemble(store, order[:size], TOKENS)
            size_of_row = sum(tensor.nbytes for tensor in _tensors(row))
            volume, copied = rate / size * size_of_row / 1e9, _copying(size_of_row, arguments.rounds)
            print(
                f"{seconds:4} s {size:14} {rate:12,.0f} {positions:14,.0f} {volume:6.2f} {copied:12.1f} "
                f"{rate / peer:13.1f}"
            )


def _copying(size: int, rounds: int) -> float:
    """GB/s at which numpy copies so many bytes: what a row could be written at if it were there already."""
    source = np.ones(size, dtype=np.uint8)
    target = np.empty_like(source)
    times = 1 + (1 << 28) // size
    taken = _time({"": lambda: [np.copyto(target, source) for _ in range(times)]}, rounds)[""]
    return times * size / taken / 1e9


def _tensors(row: PackedBatch) -> list[torch.Tensor]:
    values = [getattr(row, field.name) for field in fields(row)]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _one_by_one(store: Store, rows: list[Any]) -> None:
    for row in rows:
        pack([build_sequence(store.sample(int(index)), TOKENS) for index in row])


def _together(store: Store, rows: list[Any]) -> None:
    for row in rows:
        assemble(store, row, TOKENS)


def _rows(order: Any, size: int) -> list[Any]:
    return [order[first : first + size] for first in range(0, len(order) - size + 1, size)]


def _store(path: Path, samples: int, frames: int, words: int) -> Store:
    random = np.random.default_rng(0)
    with StoreWriter(path, made_by={}) as store:
        for number in range(samples):
            clips = [
                store.add_clip(
                    random.integers(0, 1024, (int(random.integers(frames // 2, 3 * frames // 2)), 8)).astype(np.uint16),
                    audio=bytes(32),
                )
                for _ in range(2)
            ]
            store.add_sample(
                Segments(
                    prefix=random.integers(0, 128_000, words // 2),
                    middle=random.integers(0, 128_000, words // 2),
                    suffix=np.array([128_012, 128_009]),
                ),
                reference=clips[0],
                target=clips[1],
                speaker="",
                validation=False,
                record={"id": str(number)},
            )
    return Store.open(path)


def _time(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            best[name] = min(time.process_time() - started, best.get(name, float("inf")))
    return best


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
