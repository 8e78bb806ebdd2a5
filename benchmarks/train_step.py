"""Training speed, beside transformers' `Trainer` with PEFT on the same samples, adapter, precision and loss.

    python benchmarks/train_step.py [--shape small|3B] [--device cpu|cuda] [--rounds 2] [--steps 2] [--parity 100]
                                    [--compile] [--quantize fp8] [--quantize nf4]

All ways of training run in this process, one after the other, round after round, over the same samples; each trains
its first batch twice, of which the first time is warm-up and not counted. Tokens are real ones: padding counts for
nothing, and a reference that eight samples share counts eight times, for all ways alike. `documents` and `stock` are
described in `training/stock.py`; `--compile` adds `stock` and this trainer with `torch.compile`, which train every
batch twice. Writes `benchmarks/results/train_step.json`.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training import ours, stock
from training.clock import CLOCKS, WORDS, choose
from training.parity import COMPILED, parity, rounded_parity
from training.rate import matmul_rate
from training.rows import StoredRows
from training.run import job_of
from training.samples import SHAPES, Shape, samples
from training.written import about, add_results, write

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.setup import Setup
from higgsc.contract.jobs import BatchJob
from higgsc.train.decoder.quantized import Scheme
from higgsc.train.model.layers import expect_compiler, run_layers
from higgsc.train.model.quantize import check_device, quantize_base
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, Sequence, build_sequence

LEARNING_RATE = 2e-4
DOCUMENTS_BATCH, BATCH = 4, 8
STOCK_COMPILED = "stock, compiled"

Batches = list[list[Sequence]]
Result = tuple[list[float], list[float]]
"""Seconds and loss of each step."""
Ways = dict[str, tuple[Batches, Callable[[Batches], Result]]]


def main() -> None:
    """Train each way, print a table, write the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    choose(arguments.clock)
    transformers.logging.set_verbosity_error()
    shape, device = SHAPES[arguments.shape], torch.device(arguments.device)
    for scheme in arguments.quantize:
        check_device(scheme, device)
    if arguments.compile:
        expect_compiler(device)
    ways = _ways(shape, device, arguments)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    rates, losses = [], {}
    for _ in range(arguments.rounds):
        for name, (batches, train) in ways.items():
            warm = batches if name in (COMPILED, STOCK_COMPILED) else batches[:1]
            seconds, losses[name] = train([*warm, *batches])
            speeds[name].append(_tokens(batches) / sum(seconds[len(warm) :]))
            rates.append(matmul_rate(device, shape))
            print(f"{name:40} {speeds[name][-1]:8.0f} tokens/s   {rates[-1] / 1e9:6.0f} GFLOP/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rate = statistics.median(rates)
    flops = _flops(shape, ways["higgsc"][0])
    shares = {name: [medians[name] * of / rate for of in flops] for name in ("higgsc", COMPILED) if name in ways}
    compiler = _compiler(shape, device) if arguments.compile else None
    steps = arguments.parity
    same = parity(device, shape, steps, compiler) if steps else None
    rounded = [rounded_parity(device, shape, steps, scheme) for scheme in arguments.quantize if steps]
    figures = about(arguments, device) | {
        "shape": arguments.shape,
        "clock": arguments.clock,
        "tokens_per_second": speeds,
        "matmul_rate": rates,
        "share_of_matmul_rate": {name: share for name, (share, _) in shares.items()},
        "share_of_matmul_rate_with_what_is_left_out": {name: share for name, (_, share) in shares.items()},
        "loss": losses,
        "parity": same,
        "parity_of_quantised_bases": rounded,
        "peak_memory_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    write(arguments, "train_step", figures, "\n".join(_table(figures, ways, medians)))


def _table(figures: dict[str, Any], ways: Ways, medians: dict[str, float]) -> Iterator[str]:
    yield f"# {figures['date'][:10]}, {figures['hardware']}, load {figures['load']:.1f}"
    yield f"# {figures['command']}"
    yield "# " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lengths = [len(sequence.input_ids) for batch in ways["stock"][0] for sequence in batch]
    clock = WORDS[figures["clock"]]
    yield f"shape {figures['shape']}, {len(lengths)} samples of {np.mean(lengths):.0f} tokens, {clock}"
    yield ""
    yield f"{'way':40} {'tokens/s':>9} {'min':>7} {'max':>7} {'/ stock':>8} {'/ documents':>12}"
    for name, median in medians.items():
        values = figures["tokens_per_second"][name]
        peers = ("stock, shared reference" if "shared" in name else "stock", "documents")
        ratios = "".join(f"{median / medians[peer]:{width}.2f}" for peer, width in zip(peers, (9, 13), strict=True))
        yield f"{name:40} {median:9.0f} {min(values):7.0f} {max(values):7.0f}{ratios}"
    yield ""
    rate = statistics.median(figures["matmul_rate"]) / 1e9
    for name, done in figures["share_of_matmul_rate"].items():
        whole = figures["share_of_matmul_rate_with_what_is_left_out"][name]
        yield f"matmul rate {rate:.0f} GFLOP/s, of which {name} reaches {done:.0%}"
        yield f"({whole:.0%} with what it leaves out of the last layer, at tokens without a label)"
    for name, difference in (figures["parity"] or {}).get("largest_relative_difference", {}).items():
        losses = figures["parity"]["losses"]["stock"]
        yield (
            f"loss over {len(losses)} steps in float32, from {losses[0]:.1f} to {losses[-1]:.1f}; "
            f"stock and {name}: largest relative difference {difference:.1e}"
        )
    for rounded in figures["parity_of_quantised_bases"]:
        yield (
            f"loss over {rounded['steps']} steps on a base in {rounded['scheme']} and on the base as it is: "
            f"largest relative difference {rounded['largest_relative_difference']:.1e}"
        )
    yield f"documents ratio: {medians['higgsc'] / medians['documents']:.2f}"
    name = "higgsc, shared reference"
    yield f"shared reference, stock ratio: {medians[name] / medians['stock, shared reference']:.2f}"
    yield f"best stock ratio: {medians['higgsc'] / medians['stock']:.2f}"


def _ways(shape: Shape, device: torch.device, arguments: argparse.Namespace) -> Ways:
    steps, quantize = arguments.steps, arguments.quantize
    bf16 = device.type == "cuda"
    dtype = torch.bfloat16 if bf16 else torch.float32

    def fresh() -> Any:
        return stock.adapted(shape.model(device=device, dtype=dtype), shape.rank)

    def peer(*, checkpointing: bool, compiled: bool = False) -> Callable[[Batches], Result]:
        def train(batches: Batches) -> Result:
            with tempfile.TemporaryDirectory() as folder:
                return stock.train(
                    fresh(), batches, learning_rate=LEARNING_RATE, checkpointing=checkpointing, bf16=bf16,
                    compiled=compiled, folder=folder,
                )  # fmt: skip

        return train

    def on_rounded(scheme: Scheme, make_row: ours.MakeRow) -> Callable[[Batches], Result]:
        return lambda b: ours.train(_rounded(fresh(), scheme), b, make_row, learning_rate=LEARNING_RATE, bf16=bf16)

    def own(make_row: ours.MakeRow = pack, **options: Any) -> Callable[[Batches], Result]:
        return lambda b: ours.train(fresh(), b, make_row, learning_rate=LEARNING_RATE, bf16=bf16, **options)

    tokens = AudioTokens.of(shape.config())
    made = samples(shape, BATCH * steps)
    sequences = [build_sequence(sample, tokens) for sample in made]
    # Samples of like length together, the longest first, the others' order random, as `group_by_length` has it.
    grouped = _batches(sorted(sequences, key=lambda sequence: len(sequence.input_ids)), BATCH)
    grouped = [grouped[index] for index in [steps - 1, *np.random.default_rng(0).permutation(steps - 1)]]
    rows = StoredRows(made, sequences, tokens)
    made = samples(shape, BATCH * steps, per_reference=BATCH, seed=1)
    sharing = [build_sequence(sample, tokens) for sample in made]
    shared_rows = StoredRows(made, sharing, tokens)
    ways: Ways = {
        "documents": (_batches(sequences, DOCUMENTS_BATCH), peer(checkpointing=True)),
        "stock": (grouped, peer(checkpointing=False)),
    }
    names = list(ours.ABLATION)
    for count, name in enumerate(() if arguments.no_ablation else names):
        ways[f"packed, {names[count - 1]}" if count else "packed"] = (grouped, own(without=frozenset(names[count:])))
        del name
    ways |= {
        "higgsc": (grouped, own(rows)),
        **({STOCK_COMPILED: (grouped, peer(checkpointing=False, compiled=True))} if arguments.compile else {}),
        **({COMPILED: (grouped, own(rows, prepare=_compiler(shape, device)))} if arguments.compile else {}),
        **{f"higgsc, {scheme} base": (grouped, on_rounded(scheme, rows)) for scheme in quantize},
        "stock, shared reference": (_batches(sharing, BATCH), peer(checkpointing=False)),
        "higgsc, shared reference": (_batches(sharing, BATCH), own(shared_rows)),
    }
    return ways


def _compiler(shape: Shape, device: torch.device) -> Callable[[Any], None]:
    """Compiles a decoder's layers as the trainer does."""
    batch = BatchJob(global_samples=BATCH, micro_samples=BATCH, accumulation=1)
    return partial(run_layers, job=job_of(shape, device=device.type, batch=batch, steps=1, compiled=True))


def _batches(sequences: list[Sequence], size: int) -> Batches:
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]


def _tokens(batches: Batches) -> int:
    return sum(len(sequence.input_ids) for batch in batches for sequence in batch)


def _flops(shape: Shape, batches: Batches) -> tuple[float, float]:
    """Operations that a token takes, by the closed form: causal attention sees half of a sample.

    Returns:
        Of what is computed; and with the last layer at every token, the head at labelled ones, as models are counted.
    """
    lengths = np.array([len(sequence.input_ids) for batch in batches for sequence in batch])
    audio = sum(int(sequence.is_audio.sum()) for batch in batches for sequence in batch)
    labelled = sum(len(sequence.audio_positions) for batch in batches for sequence in batch) / lengths.sum()
    setup = Setup(
        shape=shape.catalog, precision="fp32", lora=AdapterShape(targets=tuple(stock.TARGETS), rank=shape.rank),
        replicate=1, shard=1, accumulation=1,
    )  # fmt: skip
    keys = float((lengths**2).sum() / lengths.sum() / 2)
    every = flops_per_token(setup, keys=keys, audio_share=audio / lengths.sum())
    head = 4 * 8 * shape.codebook * shape.hidden
    done = flops_per_token(setup, keys=keys, audio_share=audio / lengths.sum(), labelled=labelled)
    return done, every - (1 - labelled) * head


def _rounded(model: Any, scheme: Scheme) -> Any:
    quantize_base(model.get_base_model(), scheme)
    return model


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="of 8 samples")
    parser.add_argument("--parity", type=int, default=100, help="steps over which losses are compared, in float32")
    parser.add_argument("--quantize", choices=("fp8", "int8", "nf4"), action="append", default=[], help="higgsc too")
    parser.add_argument("--compile", action="store_true", help="higgsc and stock with torch.compile too; takes minutes")
    parser.add_argument("--no-ablation", action="store_true", help="leave the techniques one by one out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a busy machine, with --threads 1")
    add_results(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
