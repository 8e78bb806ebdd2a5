"""How long the compile side takes from the prompt: `--help`, `build`, beside `torchx run --dryrun` and `import torch`.

    python benchmarks/build.py [--runs 15] [--sweep-runs 3] [--torchx PATH]

Whole processes are timed, interleaved, so that a busy moment of the machine hits all of them alike. The median and
the ratio to torchx's dry run are what to read. Sweeps of 100 and of 1,000 points show what a point costs; they write
16 files each, so a slow disk shows. Bytecode is kept, as for an installed package, whatever the environment says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "specs" / "arabic.yaml"
SWEEPS = (100, 1000)


def main() -> None:
    """Time the commands and print a table."""
    arguments = _arguments()
    higgsc = str(Path(sys.executable).with_name("higgsc"))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
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
        for points in SWEEPS:
            spec = _sweep(Path(folder), points)
            command = [higgsc, "build", str(spec)]
            seconds[f"higgsc build ({points:,} points)"] = [
                _once(command, Path(folder)) for _ in range(arguments.sweep_runs)
            ]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first, last = (medians[f"higgsc build ({points:,} points)"] for points in SWEEPS)
    per_point = (last - first) / (SWEEPS[1] - SWEEPS[0])
    peer = medians.get("torchx run --dryrun")
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, {arguments.runs} runs each\n")
    print(f"{'command':28} {'median s':>9} {'min s':>8} {'max s':>8}" + (f" {'/ torchx':>9}" if peer else ""))
    for name, median in medians.items():
        ratio = f" {median / peer:9.2f}" if peer else ""
        print(f"{name:28} {median:9.3f} {min(seconds[name]):8.3f} {max(seconds[name]):8.3f}{ratio}")
    print(f"\na point of a sweep: {per_point * 1000:.1f} ms")


def _sweep(folder: Path, points: int) -> Path:
    """The spec with its base, over that many learning rates."""
    project = folder / f"sweep-{points}"
    shutil.copytree(ROOT / "specs" / "base", project / "specs" / "base")
    spec = project / "specs" / "sweep.yaml"
    rates = ", ".join(f"{1 + index}e-8" for index in range(points))
    spec.write_text(f"{SPEC.read_text('utf-8')}sweep: {{training.learning_rate: [{rates}]}}\n", "utf-8")
    return spec


def _once(command: list[str], folder: Path) -> float:
    """Seconds of a build into folders that are not there yet."""
    for generated in folder.glob("sweep-*/generated"):
        shutil.rmtree(generated)
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--sweep-runs", type=int, default=3)
    parser.add_argument("--torchx", help="path of the torchx command (torchx 0.7.0, in an environment of its own)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
