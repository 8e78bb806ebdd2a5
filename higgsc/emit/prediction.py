"""What is predicted of a training, in words: for the report, and for `higgsc plan` and `higgsc build`."""

from __future__ import annotations

from higgsc.catalog.estimate import RESERVE, Estimate, duration, rounded
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import estimate_of
from higgsc.contract.jobs import MeshJob

PARTS = {
    "base": "frozen weights",
    "adapter": "trainable weights, float32",
    "optimizer": "AdamW's two moments",
    "gradients": "of earlier micro-batches of the step",
    "gathered": "weights that FSDP2 has put together",
    "activations": "kept by the decoder for the backward pass",
    "working": "logits, and what comes and goes",
}
"""The parts of `higgsc.catalog.memory_parts.Memory`, for people."""


def mesh_line(ir: Ir) -> str:
    """`replicate 2 × shard 4 × tensor 2 with sequence`."""
    given = ir.spec.parallelism
    replicate = ir.integer("parallelism.replicate")
    return MeshJob(replicate=replicate, shard=given.shard, tensor=given.tensor, sequence=given.sequence).words


def memory_line(found: Estimate) -> str:
    """`52.8 of 141 GB per GPU   fits; up to 19,980 tokens per micro-batch (10 samples) would`."""
    need = found.memory.total / 1e9
    if found.gpu is None:
        return f"{need:.1f} GB per process   no verdict: {found.unknown}"
    samples = "" if found.by_tokens else f" ({found.largest} samples)"
    verdict = "fits" if found.fits else "does not fit"
    return (
        f"{need:.1f} of {found.gpu.memory_bytes / 1e9:.0f} GB per GPU   {verdict}; "
        f"up to {found.largest_tokens:,} tokens per micro-batch{samples} would"
    )


def gpu_hours(hours: float, price: float | None) -> str:
    """`4.2 GPU-hours`, with what they cost if the site gives a price: `4.2 GPU-hours, 13 at 3 an hour`."""
    cost = "" if price is None else f", {rounded(hours * price)} at {price:g} an hour"
    return f"{rounded(hours)} GPU-hours{cost}"


def section(ir: Ir) -> list[str]:
    """Memory by part, and the speed where it can be guessed, as a section of `report.md`."""
    found = estimate_of(ir)
    where = "process" if found.gpu is None else "GPU"
    reserve = "" if found.gpu is None else f"; {RESERVE:.0%} of the GPU stays free"
    lines = [
        "## Memory and speed",
        "",
        f"| memory per {where} | GB | what for |",
        "|---|--:|---|",
        *(f"| {part} | {count / 1e9:.2f} | {PARTS[part]} |" for part, count in found.memory.parts.items()),
        f"| **total** | **{found.memory.total / 1e9:.2f}** | for {found.row}{reserve} |",
        "",
        f"Computed from the shapes, not measured: {memory_line(found).replace('   ', ', ')}.",
        "`higgsc plan --verify` compares it with a trace of the trainer.",
        "",
    ]
    return [*lines, *_speed(ir, found), ""]


def _speed(ir: Ir, found: Estimate) -> list[str]:
    speed = found.speed
    if speed is None:
        return [f"How fast it will be is not known: {found.unknown}."]
    lines = [
        f"A guess: {rounded(speed.tokens_per_second)} tokens/s per GPU, {speed.step_seconds:.2g} s a step, "
        f"{rounded(speed.speech_hours_per_hour)} h of target speech an hour.",
        f"It rests on an assumption: {speed.assumption}.",
    ]
    if speed.total_hours is not None and speed.total_gpu_hours is not None:
        cost = gpu_hours(speed.total_gpu_hours, ir.spec.site.price_per_gpu_hour)
        lines.append(f"At that speed the training takes about {duration(speed.total_hours)}: {cost}.")
    return lines
