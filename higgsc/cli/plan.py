"""`higgsc plan`: what a spec would do, what it needs and how long it takes, before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from higgsc.catalog.estimate import RESERVE, UTILISATION, Estimate, duration, rounded
from higgsc.cli.compiling import compile_and_report, composition_options, headline
from higgsc.compiler.compile import Compiled
from higgsc.compiler.passes.memory import estimate_of
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.prediction import gpu_hours

PLAN_ESTIMATE = "higgsc.estimate/v1"
TOLERANCE = 0.05
"""Largest difference between closed form and trace, as a share of the trace, that `--verify` accepts."""


@click.command("plan")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.04, max=600), help="Typical length of a clip, for the speed [10]."
)
@click.option("--verify", is_flag=True, help="Trace the trainer without a GPU and compare; needs the extra `train`.")
@composition_options
def command(
    spec: Path, as_json: bool, seconds: float | None, verify: bool, site: str | None, overrides: tuple[str, ...]
) -> None:
    """Show the steps of SPEC, its memory and speed before anything runs."""
    compilation = compile_and_report(spec, site=site, overrides=overrides)
    if not compilation.compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    estimates = [estimate_of(made.ir, seconds) for made in compilation.compiled]
    traces: list[dict[str, Any] | None] = [None] * len(estimates)
    if verify:
        traces = [*_trace(list(zip(compilation.compiled, estimates, strict=True)))]
    documents = []
    for made, found, traced in zip(compilation.compiled, estimates, traces, strict=True):
        documents.append(_document(made, found, traced))
        if not as_json:
            lines = [headline(made.plan, made.ir), *_memory(found), *_speed(made, found)]
            click.echo("\n".join([*lines, *(_comparison(found, traced) if traced else [])]))
    if as_json:
        click.echo(json.dumps({"schema": PLAN_ESTIMATE, "plans": documents}, indent=2, ensure_ascii=False))
    if any(abs(document.get("difference", 0.0)) > TOLERANCE for document in documents):
        sys.exit(ExitCode.DIAGNOSTICS)


def _memory(found: Estimate) -> list[str]:
    parts = " · ".join(f"{part} {count / 1e9:.1f}" for part, count in found.memory.parts.items() if count >= 5e7)
    reserve = "" if found.gpu is None else f"; {RESERVE:.0%} of the GPU stays free"
    return [*([f"          {parts}"] if parts else []), f"          for {found.row}{reserve}"]


def _speed(made: Compiled, found: Estimate) -> list[str]:
    speed = found.speed
    if speed is None:
        return [f"  speed   not known: {found.unknown}"]
    price = made.ir.spec.site.price_per_gpu_hour
    lines = [
        f"  speed   about {rounded(speed.tokens_per_second)} tokens/s per GPU, {speed.step_seconds:.2g} s a step; "
        f"{rounded(speed.speech_hours_per_hour)} h of target speech an hour",
        f"          a guess: {speed.assumption}",
        f"          {speed.sample.tokens} tokens a sample, {speed.flops_per_token / 1e9:.1f} GFLOP a token",
    ]
    if speed.total_hours is not None and speed.total_gpu_hours is not None:
        length = (
            f"{made.ir.spec.training.steps:,} steps take about {duration(speed.total_hours)}: "
            f"{gpu_hours(speed.total_gpu_hours, price)}"
        )
    else:
        epochs = made.ir.spec.training.epochs
        hours = 1000 / speed.speech_hours_per_hour
        length = (
            f"{duration(hours)} for every 1,000 h of target speech and epoch, of which there are {epochs:g}: "
            f"{gpu_hours(hours * speed.gpus, price)}; how much speech there is, the prepare step finds out"
        )
    return [*lines, f"  time    {length}"]


def _comparison(found: Estimate, traced: dict[str, Any]) -> list[str]:
    lines = ["  verify  GB per GPU    computed    traced  difference"]
    rows = {part: (count, traced["parts"][part]) for part, count in found.memory.parts.items()}
    rows["total"] = (found.memory.total, traced["total"])
    for name, (computed, measured) in rows.items():
        lines.append(
            f"          {name:<12} {computed / 1e9:>9.2f} {measured / 1e9:>9.2f}  {(computed - measured) / 1e9:>+10.2f}"
        )
    difference = _difference(found, traced)
    verdict = "agrees" if abs(difference) <= TOLERANCE else f"differs by more than {TOLERANCE:.0%}"
    return [*lines, f"          {verdict}: {difference:+.1%}"]


def _difference(found: Estimate, traced: dict[str, Any]) -> float:
    """Of the totals, as a share of the trace."""
    return float(found.memory.total / traced["total"] - 1)


def _trace(points: Sequence[tuple[Compiled, Estimate]]) -> list[dict[str, Any]]:
    """Trace trainings in a process of their own, which may import torch.

    Raises:
        ModuleNotFoundError: Without the extra `train`.
        StepError: If the trace fails.
    """
    for module in ("torch", "transformers", "peft"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
    requests = [
        {"train": made.plan.step("train").job.model_dump(mode="json"), **asdict(found.longest)}
        for made, found in points
    ]
    with tempfile.TemporaryDirectory(prefix="higgsc-plan-") as folder:
        path = Path(folder) / "trace.json"
        path.write_text(json.dumps(requests), "utf-8")
        argv = [sys.executable, "-m", "higgsc.train.prediction.trace", str(path)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise StepError(f"the trace failed: {last}", code=ExitCode.INTERNAL)
    traced: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return traced


def _document(made: Compiled, found: Estimate, traced: dict[str, Any] | None) -> dict[str, Any]:
    ir, speed, price = made.ir, found.speed, made.ir.spec.site.price_per_gpu_hour
    hours = None if speed is None else speed.total_gpu_hours
    document: dict[str, Any] = {
        "name": made.plan.name,
        "hardware": made.plan.hardware,
        "steps": [step.name for step in made.plan.steps],
        "mesh": {**ir.spec.parallelism.model_dump(), "replicate": ir.integer("parallelism.replicate")},
        "trainable_parameters": ir.integer("training.trainable_parameters"),
        "parameters": ir.shape.parameter_count(),
        "accumulation": ir.integer("training.accumulation"),
        "activation_checkpointing": found.checkpointing,
        "memory": {
            "bytes": found.memory.parts,
            "total_bytes": found.memory.total,
            "gpu_bytes": None if found.gpu is None else found.gpu.memory_bytes,
            "reserve": RESERVE,
            "fits": found.fits,
            "micro_batch": {
                "samples": None if found.by_tokens else found.samples,
                "tokens": found.samples * found.longest.tokens,
            },
            "largest_micro_batch": None
            if found.largest is None
            else {"samples": None if found.by_tokens else found.largest, "tokens": found.largest_tokens},
        },
        "speed": None
        if speed is None
        else {
            **asdict(speed),
            "total_gpu_hours": hours,
            "total_cost": None if hours is None or price is None else hours * price,
            "assumed_utilisation": UTILISATION,
            "assumption": speed.assumption,
        },
        "unknown": found.unknown,
    }
    if traced is not None:
        document |= {"traced": traced, "difference": _difference(found, traced)}
    return document
