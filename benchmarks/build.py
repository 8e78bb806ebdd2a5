"""How long the compile side takes from the prompt: `--help`, `build`, beside `torchx run --dryrun` and `import torch`.

    python benchmarks/build.py [--runs 15] [--torchx PATH]

Whole processes are timed, interleaved, so that a busy moment of the machine hits all of them alike. The median and
the ratio to torchx's dry run are what to read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "specs" / "arabic.yaml"


def main() -> None:
    """Time the commands and print a table."""
    arguments = _arguments()
    higgsc = str(Path(sys.executable).with_name("higgsc"))
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "higgsc --help": [higgsc, "--help"],
            "higgsc build (first)": [higgsc, "build", str(SPEC), "-o", f"{folder}/build"],
            "higgsc build (again)": [higgsc, "build", str(SPEC), "-o", f"{folder}/build"],
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        if arguments.torchx:
            commands["torchx run --dryrun"] = [
                arguments.torchx, "run", "--dryrun", "-s", "slurm", "dist.ddp", "-j", "1x8", "--script", "train.py",
            ]  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.runs):
            for name, command in commands.items():
                if name.endswith("(first)"):
                    subprocess.run(["rm", "-rf", f"{folder}/build"], check=True)
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=folder)
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peer = medians.get("torchx run --dryrun")
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, {arguments.runs} runs each\n")
    print(f"{'command':28} {'median s':>9} {'min s':>8} {'max s':>8}" + (f" {'/ torchx':>9}" if peer else ""))
    for name, median in medians.items():
        ratio = f" {median / peer:9.2f}" if peer else ""
        print(f"{name:28} {median:9.3f} {min(seconds[name]):8.3f} {max(seconds[name]):8.3f}{ratio}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--torchx", help="path of the torchx command (torchx 0.7.0, in an environment of its own)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
