"""What stands over every table and in every file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import transformers

RESULTS = Path(__file__).resolve().parent.parent / "results"


def write(arguments: argparse.Namespace, name: str, figures: dict[str, Any], text: str) -> None:
    """Print the table, and leave it and the figures behind."""
    print(text)
    (arguments.results / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    (arguments.results / f"{name}.txt").write_text(text + "\n", "utf-8")


def add_results(parser: argparse.ArgumentParser) -> None:
    """The option that says where."""
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")


def about(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Date, command, versions, hardware, and how busy the machine is."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft, accelerate)},
        "hardware": hardware(device, arguments.threads),
        "load": os.getloadavg()[0],
    }


def hardware(device: torch.device, threads: int) -> str:
    """The GPU, or the processor with its cores, the threads used of them, and the load."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{model.partition(': ')[2] or platform.processor()}, {os.cpu_count()} cores, {threads} threads"
