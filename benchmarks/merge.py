"""A merge beside PEFT's own and beside a plain copy of the same files: time, processor time, memory, equality.

    python benchmarks/merge.py [--layers 12] [--hidden 1024] [--rank 32] [--rounds 3]
    python benchmarks/merge.py --layers 28 --hidden 3072 --rank 64 --name merge_released    # its size; 35 GB of disk

The base has the released proportions, vocabulary included, random weights in bfloat16 and shards of 200 MB; the
adapter is on every linear layer of the decoder. Each contender is a process of its own, so that its largest memory is
its own; they take turns, the best round counts. Start and imports are in the memory and not in the time. All flush
what they have written to the disk. Writes `benchmarks/results/merge.json` and `merge.txt`, or of another name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import higgsc
from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape
from higgsc.deploy.merge.fold import Steps, merge_adapter, write_weights
from higgsc.deploy.merge.record import Record
from higgsc.deploy.weights import open_weights
from higgsc.train.model.adapter import open_adapter
from higgsc.train.model.builtin import tiny_path

RESULTS = Path(__file__).resolve().parent / "results"
SHARD_BYTES = 200_000_000
MAKERS = ("base", "adapter", "equal")
CONTENDERS = ("copy", "weights", "peft", "merge")
COMPARED = ("peft", "merge")
TITLES = {
    "copy": "cp, and flushed",
    "weights": "higgsc, the weights",
    "peft": "PEFT, merge_and_unload and save_pretrained",
    "merge": "higgsc, checked and with all other files",
}


def main() -> None:
    """Make base and adapter, let the contenders take turns, print the table."""
    arguments = _arguments()
    if arguments.contender is not None:
        _contend(arguments)
        return
    with tempfile.TemporaryDirectory(dir=arguments.where) as name:
        folder = Path(name)
        shape = _shape(arguments.hidden, arguments.layers)
        for made in ("base", "adapter"):
            _run(made, folder)
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        figures: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", "benchmarks/merge.py", *sys.argv[1:]]),
            "versions": {module.__name__: module.__version__ for module in (higgsc, torch, transformers, peft)},
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            "load": os.getloadavg()[0],
            "parameters": shape.parameter_count(),
            "bytes": size,
            "rank": arguments.rank,
        }
        best: dict[str, tuple[float, float, int]] = {}
        for _ in range(arguments.rounds):
            for contender in CONTENDERS:
                shutil.rmtree(folder / contender, ignore_errors=True)
                found = _measure(contender, folder)
                if contender not in COMPARED:
                    shutil.rmtree(folder / contender)
                best[contender] = min(best.get(contender, found), found)
        figures["contenders"] = {
            contender: dict(zip(("seconds", "cpu_seconds", "peak_bytes"), best[contender], strict=True))
            for contender in CONTENDERS
        }
        equal = _command("equal", folder)
        figures["equal"] = subprocess.run(equal, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    text = "\n".join(_table(figures))
    print(text)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    (RESULTS / f"{arguments.name}.txt").write_text(text + "\n", "utf-8")


def _table(figures: dict[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    yield f"# {figures['date'][:10]}, {figures['hardware']}, load {figures['load']:.1f}, {versions}"
    yield f"# {figures['command']}"
    yield f"{figures['parameters']:,} parameters in bfloat16, {figures['bytes'] / 1e9:.2f} GB; rank {figures['rank']}"
    yield ""
    yield f"{'':44}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'x cp':>7}"
    found = figures["contenders"]
    for contender, of in found.items():
        times = f"{of['seconds']:8.2f}{of['cpu_seconds']:8.2f}"
        ratio = of["seconds"] / found["copy"]["seconds"]
        yield f"{TITLES[contender]:44}{times}{of['peak_bytes'] / 1e6:9,.0f}{ratio:7.2f}"
    yield ""
    yield figures["equal"]
    yield f"copy ratio: {found['weights']['seconds'] / found['copy']['seconds']:.2f}"


def _command(contender: str, folder: Path) -> list[str]:
    return [sys.executable, __file__, *sys.argv[1:], "--contender", contender, "--folder", str(folder)]


def _run(contender: str, folder: Path) -> None:
    """In a process of its own too: the memory of this one would be counted as that of its children."""
    subprocess.run(_command(contender, folder), check=True)


def _measure(contender: str, folder: Path) -> tuple[float, float, int]:
    """Seconds, processor seconds, and bytes of memory at most, of a process of its own."""
    command = _command(contender, folder)
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = child.stdout.read().split()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{contender} ended with {child.returncode}")
    wall, cpu = map(float, told)
    assert wall <= time.monotonic() - started
    return wall, cpu, usage.ru_maxrss * 1024


def _contend(arguments: argparse.Namespace) -> None:
    """Do the work; print the seconds and processor seconds it took, imports and start not counted."""
    contender, folder, shape = arguments.contender, arguments.folder, _shape(arguments.hidden, arguments.layers)
    if contender in MAKERS:
        _prepare(contender, folder, shape, arguments.rank)
        return
    base, adapter, out = folder / "base", folder / "adapter", folder / contender
    started, used = time.monotonic(), _cpu()
    match contender:
        case "copy":
            subprocess.run(["cp", "-r", "--reflink=never", str(base), str(out)], check=True)
            _flush(out)
        case "peft":
            model = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(
                base, use_text_head=True, dtype=torch.bfloat16
            )
            peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
            _flush(out)
        case "weights":
            out.mkdir()
            weights = open_weights(base)
            record = Record.of(weights, "", dtype="bf16", layout="transformers")
            write_weights(
                open_adapter(adapter), weights, out, record,
                dtype=torch.bfloat16, layout="transformers", steps=Steps(None, 0),
            )  # fmt: skip
        case "merge":
            merge_adapter(base, adapter, out, dtype="bf16")
    print(time.monotonic() - started, _cpu() - used)


def _cpu() -> float:
    """Processor seconds of this process and of those it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _prepare(what: str, folder: Path, shape: HiggsAudioV2Shape, rank: int) -> None:
    match what:
        case "base":
            _make_base(folder / "base", shape)
        case "adapter":
            _make_adapter(folder / "adapter", shape, rank)
        case "equal":
            equal, count = _equal(*(folder / name for name in COMPARED))
            print(f"{equal} of {count} tensors are PEFT's to the bit")


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _equal(some: Path, others: Path) -> tuple[int, int]:
    """How many tensors of two folders are equal, and how many there are."""
    places = {name: path for path in others.glob("*.safetensors") for name in load_file(path)}
    equal = count = 0
    for path in some.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            count += 1
            equal += bool(torch.equal(tensor, load_file(places[name])[name]))
    return equal, len(places)


def _shape(hidden: int, layers: int) -> HiggsAudioV2Shape:
    return HiggsAudioV2Shape(
        vocab_size=128_256, hidden_size=hidden, intermediate_size=hidden * 8 // 3, layers=layers,
        attention_heads=hidden // 128, key_value_heads=max(1, hidden // 384), head_dim=128, codebooks=8,
        codebook_size=1026,
    )  # fmt: skip


def _make_base(folder: Path, shape: HiggsAudioV2Shape) -> None:
    """A checkpoint in shards, and the tiny one's other files with its sizes."""
    folder.mkdir()
    for path in tiny_path("model").glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {
        "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size, "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention_heads, "num_key_value_heads": shape.key_value_heads,
        "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, size in shape.parameters().items():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = (torch.randn(size, generator=generator) * 0.02 + (len(size) == 1)).bfloat16()
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 2 * shape.parameter_count()}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _make_adapter(folder: Path, shape: HiggsAudioV2Shape, rank: int) -> None:
    """As a training leaves it: A and B random, float32, in PEFT's format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (out, into) in shape.linear_modules().items():
        if name.startswith("model.layers."):
            stem = f"base_model.model.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, into, generator=generator) * 0.02
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": None, "bias": "none"}
    config |= {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 128")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="merge", help="of the result files")
    parser.add_argument("--where", type=Path, help="folder for the files; that of temporary files")
    parser.add_argument("--contender", choices=(*MAKERS, *CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
