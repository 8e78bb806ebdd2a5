"""What a rank costs as ranks grow: processor time, wall-clock time and what it says to others; measured, then computed.

    python benchmarks/scale.py [--device cpu|cuda] [--ranks 1,2,4] [--steps 3] [--samples 2]

Measured: every rank trains on as many samples a step, all of one length, whatever the number of ranks. `higgsc` with
whole copies of the base and with shards, and the peer, transformers' `Trainer` with PEFT under torchrun's environment,
which wraps the model in DistributedDataParallel. Ranks that train apart, at the same time on the same machine, show
what it costs to share a machine; what ranks that train together cost beyond that is the cost of being together. The
ways take turns in the same processes. Bytes are counted twice: as handed to collectives, and, over gloo, as received
by the process's TCP connections.

Computed: the same volume from the shapes, and from it, `scaling/analytic.py`, the released model on up to 1,024 GPUs.

On a GPU machine there is a rank for each GPU, with the released model's shape. Writes `benchmarks/results/scale.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scaling.analytic import NETWORKS, PER_MACHINE, ROW, imbalances, step_seconds, volume
from scaling.rank import UNTIMED
from training.run import job_of, setup_of, write_store
from training.samples import SHAPES, Shape, equal_samples
from training.written import about, add_results, write

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.estimate import UTILISATION, speed
from higgsc.catalog.gpus import GPUS
from higgsc.catalog.setup import Sample
from higgsc.contract.jobs import BatchJob, MeshJob

RANK = Path(__file__).resolve().parent / "scaling" / "rank.py"
ROOT = Path(__file__).resolve().parent.parent
MANY = (1, 8, 16, 64, 256, 1024)
GPU, TARGET = GPUS["H200"], 45_000
"""The GPU of the computed table, and tokens/s that the trainer aims at there, beside what `higgsc plan` assumes."""


def main() -> None:
    """Measure all numbers of ranks, print both tables, write the figures."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    name = arguments.shape or ("3B" if device.type == "cuda" else "small")
    lengths = Sample.of_seconds(arguments.seconds, arguments.seconds)
    numbers = [int(number) for number in arguments.ranks.split(",")]
    if device.type == "cuda":
        numbers = [number for number in numbers if number <= torch.cuda.device_count()]
    measured: list[dict[str, Any]] = []
    for ranks in numbers:
        with tempfile.TemporaryDirectory() as folder:
            measured += _measured(Path(folder), name, lengths, ranks, arguments)
        print(f"{ranks} ranks: done", file=sys.stderr, flush=True)
    figures = about(arguments, device) | {
        "shape": name,
        "samples": arguments.samples,
        "tokens": arguments.samples * lengths.tokens,
        "measured": measured,
        "computed": _computed(),
    }
    text = "\n".join([*_table(figures), "", *_computed_table(figures["computed"]), "", _last(measured)])
    write(arguments, "scale", figures, text)


def _measured(
    folder: Path, shape: str, lengths: Sample, ranks: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Cost of a step to a rank by each way; medians over steps, means over ranks."""
    ways = _ways(folder, SHAPES[shape], lengths, ranks, arguments)
    plan = {
        "shape": shape,
        "device": arguments.device,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "samples": arguments.samples,
        "lengths": asdict(lengths),
        "ways": ways,
    }
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    _run(folder, ranks, arguments)
    found = []
    for way in ways:
        each = [json.loads((folder / f"{way['name']}-{rank}.json").read_text("utf-8")) for rank in range(ranks)]

        def middle(figure: str, each: list[dict[str, Any]] = each) -> float:
            return float(statistics.mean(statistics.median(one[figure]) for one in each))

        found.append(
            {
                "ranks": ranks,
                "way": way["name"],
                "together": way["ranks"] > 1,
                "cpu_seconds": middle("cpu"),
                "wall_seconds": middle("wall"),
                "received": middle("received") if arguments.device == "cpu" else None,
                "handed": each[0]["collectives"],
                "computed_volume": way["volume"],
                "computed_on_wires": way["on_wires"],
                "every_rank": each,
            }
        )
    return found


def _ways(
    folder: Path, shape: Shape, lengths: Sample, ranks: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """What the ranks do one after the other; jobs and stores are written."""
    with ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        ports = iter([taken.getsockname()[1] for taken in free])
    steps, samples = arguments.steps + UNTIMED, arguments.samples
    meshes = {"higgsc apart": MeshJob(replicate=1, shard=1)}
    if ranks > 1:
        meshes |= {
            "higgsc": MeshJob(replicate=ranks, shard=1),
            "higgsc, sharded": MeshJob(replicate=1, shard=ranks),
        }
    ways: list[dict[str, Any]] = []
    for name, mesh in meshes.items():
        batch = BatchJob(global_samples=mesh.processes * samples, micro_samples=samples, accumulation=1)
        job = job_of(shape, device=arguments.device, batch=batch, steps=steps, mesh=mesh)
        setup = setup_of(shape, job)
        own = volume(setup)
        for path in [folder / name] if mesh.processes > 1 else [folder / f"{name}-{rank}" for rank in range(ranks)]:
            path.mkdir()
            write_store(path / "store", equal_samples(shape, lengths, mesh.processes * samples))
            (path / "train.json").write_text(job.model_dump_json(), "utf-8")
        way = {"name": name, "job": name, "ranks": mesh.processes, "port": next(ports)}
        ways.append(way | {"volume": own.calls, "on_wires": own.on_wires(setup)})
    for name, number in {"Trainer apart": 1, "Trainer, DDP": ranks}.items():
        if number > 1 or name.endswith("apart"):
            way = {"name": name, "job": None, "ranks": number, "port": next(ports)}
            ways.append(way | {"volume": {}, "on_wires": None})
    return ways


def _run(folder: Path, ranks: int, arguments: argparse.Namespace) -> None:
    """Start the ranks as torchrun does, each with a GPU of its own, and wait for them."""
    processes = []
    for rank in range(ranks):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(arguments.threads), "RANK": str(rank),
            "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        }  # fmt: skip
        if arguments.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = str(rank)
        with (folder / f"log-{rank}").open("w") as log:
            command = [sys.executable, str(RANK), str(folder)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        if code:
            raise SystemExit(f"rank {rank} ended with {code}:\n{(folder / f'log-{rank}').read_text()[-4000:]}")


def _table(figures: dict[str, Any]) -> Iterator[str]:
    yield f"# {figures['date'][:10]}, {figures['hardware']} a rank, load {figures['load']:.1f}"
    yield f"# {figures['command']}"
    yield "# " + ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    yield (
        f"measured: {figures['samples']} samples, {figures['tokens']:,} tokens a step and rank; "
        "apart: the same number of ranks at the same time, each by itself"
    )
    yield ""
    yield f"{'':28}{'a step of one rank, s':>32} {'collectives of a rank and step':>38} {'computed':>16}"
    yield (
        f"{'ranks  way':28}{'processor':>11}{'/ apart':>10}{'wall':>11} "
        f"{'calls':>12}{'MB handed':>12}{'MB received':>14} {'MB handed':>16}{'received':>10}"
    )
    apart: dict[str, float] = {}
    for row in figures["measured"]:
        who = row["way"].partition(" ")[0].rstrip(",")
        if not row["together"]:
            apart[who] = row["cpu_seconds"]
        line = f"{row['ranks']:5}  {row['way']:21}{row['cpu_seconds']:11.3f}{row['cpu_seconds'] / apart[who]:10.2f}"
        line += f"{row['wall_seconds']:11.3f} "
        if row["together"]:
            calls = [size for sizes in row["handed"].values() for size in sizes]
            line += f"{len(calls):12}{sum(calls) / 1e6:12.2f}"
            line += f"{row['received'] / 1e6:14.2f} " if row["received"] is not None else f"{'':15}"
            if row["computed_volume"]:
                line += f"{sum(row['computed_volume'].values()) / 1e6:16.2f}{row['computed_on_wires'] / 1e6:10.2f}"
        yield line.rstrip()


def _computed() -> dict[str, Any]:
    """The released model on many GPUs: seconds of a step, and the share of it that is one GPU's work."""
    shape = SHAPES["3B"]
    job = job_of(shape, device="cuda", batch=BatchJob(global_tokens=ROW, micro_tokens=ROW, accumulation=1), steps=1)
    alone = setup_of(shape, job)
    plan = speed(alone, 10.0, 0, GPU, steps=None, tokens=ROW)
    computes = {f"{plan.tokens_per_second:,.0f}": plan.step_seconds, f"{TARGET:,}": ROW / TARGET}
    attention = flops_per_token(alone, keys=1) - flops_per_token(alone, keys=0)
    more = imbalances(MANY, (flops_per_token(alone, keys=0), attention))
    rows = []
    for gpus in MANY:
        meshes = {"whole copies": replace(alone, replicate=gpus)}
        if gpus >= PER_MACHINE:
            meshes["8 shards"] = replace(alone, replicate=gpus // PER_MACHINE, shard=PER_MACHINE)
        for name, setup in meshes.items():
            for network in NETWORKS:
                for tokens, compute in computes.items():
                    seconds = step_seconds(setup, network, compute, gpus, more[gpus])
                    rows.append(
                        {
                            "gpus": gpus, "mesh": name, "network": network.name, "tokens_per_second_of_one": tokens,
                            "step_seconds": seconds, "efficiency": compute / seconds, "imbalance": more[gpus],
                            "handed": volume(setup).calls,
                        }
                    )  # fmt: skip
    words = [network.words for network in NETWORKS]
    return {"rows": rows, "networks": words, "speeds": list(computes), "per_step": computes}


def _computed_table(computed: dict[str, Any]) -> Iterator[str]:
    yield f"computed, not measured: the released model, rank 64 on every matrix of the layers, bf16, {GPU.name},"
    yield f"rows of {ROW:,} tokens, one a step and GPU: the global batch grows to {1024 * ROW / 1e6:.1f} M tokens"
    plan, target = computed["speeds"]
    yield f"a GPU makes {plan} tokens/s ({UTILISATION:.0%} of its peak, as higgsc plan assumes), or {target} (the aim)"
    yield "no overlap of the gradients' all-reduce, all of it of the shards' gathers, rings, no stragglers"
    yield from computed["networks"]
    for mesh in ("whole copies", "8 shards"):
        handed = next(row["handed"] for row in reversed(computed["rows"]) if row["mesh"] == mesh)
        said = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in handed.items())
        yield f"a GPU and step hands over, {mesh}: {said}"
    yield ""
    yield "share of the time that a GPU by itself would take for its work (100 %: nothing is lost to the others)"
    columns = [(network.name, tokens) for network in NETWORKS for tokens in (plan, target)]
    yield f"{'':31}" + "".join(f"{network.name:>28}" for network in NETWORKS)
    yield f"{' GPUs  mesh':21}{'dearest':>10}" + "".join(f"{tokens + '/s':>14}" for _, tokens in columns)
    found = {
        (row["gpus"], row["mesh"], row["network"], row["tokens_per_second_of_one"]): row for row in computed["rows"]
    }
    for gpus, mesh in dict.fromkeys((row["gpus"], row["mesh"]) for row in computed["rows"]):
        cells = [found[gpus, mesh, *column] for column in columns]
        line = "".join(f"{cell['efficiency']:14.1%}" for cell in cells)
        yield f"{gpus:5}  {mesh:14}{cells[0]['imbalance']:+10.1%}{line}"


def _last(measured: list[dict[str, Any]]) -> str:
    most = max(row["ranks"] for row in measured)
    cost = {row["way"]: row["cpu_seconds"] for row in measured if row["ranks"] == most}
    if most == 1:
        return f"stock ratio on one rank: {cost['Trainer apart'] / cost['higgsc apart']:.2f}"
    ours, peer = cost["higgsc"] / cost["higgsc apart"], cost["Trainer, DDP"] / cost["Trainer apart"]
    return f"cost of a rank among {most}, over one apart: {ours:.2f}; of the peer's: {peer:.2f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="3B on GPUs and small on a CPU if not given")
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks")
    parser.add_argument("--steps", type=int, default=3, help="timed ones")
    parser.add_argument("--samples", type=int, default=2, help="of a step and rank")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a reference, and of a target")
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    add_results(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
