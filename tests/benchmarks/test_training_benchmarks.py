"""The benchmarks of the trainer run, and what in their tables is no matter of speed is right."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def benchmark(name: str, results: Path, *options: str) -> tuple[dict[str, Any], list[str]]:
    """Run a script; its figures and the lines of its table."""
    finished = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *options, "--threads", "1", "--results", str(results)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    table = (results / f"{name}.txt").read_text()
    assert finished.stdout == table
    return json.loads((results / f"{name}.json").read_text()), table.splitlines()


def test_the_counter_of_memory_counts_what_is_alive_in_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, during and after: 40 MB that stay, 20 that come and go in the step, 80 that come and go elsewhere."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peak = importlib.import_module("training.memory").Peak(torch.device("cpu"))
    kept = torch.empty(40_000_000, dtype=torch.uint8)
    elsewhere = torch.empty(80_000_000, dtype=torch.uint8)
    del elsewhere
    with peak.step():
        torch.empty(20_000_000, dtype=torch.uint8)
    assert peak.bytes == pytest.approx(kept.nbytes + 20_000_000, abs=10_000)


@pytest.mark.slow
def test_predicted_memory_is_measured(tmp_path: Path) -> None:
    figures, table = benchmark("predict", tmp_path, "--shape", "tiny", "--steps", "1", "--clock", "cpu")
    (case,) = figures["cases"]
    for prediction in ("predicted_bytes", "traced_bytes"):
        assert case[prediction] == pytest.approx(case["measured_bytes"], rel=0.05), prediction
    assert case["predicted_seconds"] == pytest.approx(case["measured_seconds"])  # fitted to
    assert 0.1 < figures["share_of_matmul_rate"] < 1.2
    assert table[-1].startswith("largest error: memory ")


@pytest.mark.slow
def test_what_ranks_say_is_what_is_computed(tmp_path: Path) -> None:
    options = ("--shape", "tiny", "--ranks", "2", "--steps", "1", "--samples", "1", "--seconds", "1")
    figures, table = benchmark("scale", tmp_path, *options)
    rows = {row["way"]: row for row in figures["measured"]}
    for way in ("higgsc", "higgsc, sharded"):
        row = rows[way]
        # Beside a vote of one number.
        handed = {name: sum(size for size in sizes if size > 8) for name, sizes in row["handed"].items()}
        assert handed == row["computed_volume"], way
        # gloo scatters by an all-reduce; and there is what TCP connections say beside.
        assert row["computed_on_wires"] <= row["received"] < 1.1 * row["computed_on_wires"] + 1000, way
    assert max(rows["higgsc"]["handed"]["allreduce"]) == sum(rows["higgsc"]["computed_volume"].values())
    # The peer says the same gradients, and a little of its own.
    assert sum(rows["Trainer, DDP"]["handed"]["allreduce"]) == pytest.approx(
        rows["higgsc"]["computed_volume"]["allreduce"], rel=0.01
    )
    assert not any(row["handed"] for way, row in rows.items() if way.endswith("apart"))
    assert all(row["cpu_seconds"] > 0 for row in rows.values())

    computed = figures["computed"]["rows"]
    assert all(0 < row["efficiency"] <= 1 for row in computed)
    columns: dict[tuple[str, ...], list[float]] = {}
    for row in computed:
        of = row["mesh"], row["network"], row["tokens_per_second_of_one"]
        columns.setdefault(of, []).append(row["efficiency"])
    assert len(columns) == 8
    assert all(column == sorted(column, reverse=True) for column in columns.values())
    assert table[-1].startswith("cost of a rank among 2, over one apart: ")


@pytest.mark.slow
def test_ways_of_training_agree_on_the_loss(tmp_path: Path) -> None:
    options = ("--shape", "tiny", "--rounds", "1", "--steps", "1", "--parity", "8", "--clock", "cpu")
    figures, table = benchmark("train_step", tmp_path, *options, "--quantize", "fp8", "--compile")
    losses = figures["loss"]
    for way, found in losses.items():
        peer = losses["stock, shared reference" if "shared" in way else "stock"]
        if way != "documents":  # it takes two batches of four
            assert found == pytest.approx(peer, rel=1e-2 if way.endswith("fp8 base") else 1e-5), way
    assert losses["higgsc, fp8 base"] != losses["higgsc"]
    (rounded,) = figures["parity_of_quantised_bases"]
    assert 0 < rounded["largest_relative_difference"] < 0.02
    assert figures["parity"]["largest_relative_difference"].keys() == {"higgsc", "higgsc, compiled"}
    assert max(figures["parity"]["largest_relative_difference"].values()) < 1e-5
    assert figures["share_of_matmul_rate"].keys() == {"higgsc", "higgsc, compiled"}
    learned = figures["parity"]["losses"]["stock"]
    assert learned[-1] < learned[0]
    assert table[-1].startswith("best stock ratio: ")
