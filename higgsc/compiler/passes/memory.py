"""The memory of a GPU: a training that does not fit is refused before it is submitted."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from math import ceil

from higgsc.catalog.estimate import RESERVE, TYPICAL_SECONDS, Estimate, estimate, fits, with_shards, with_tensor
from higgsc.catalog.gpus import Gpu, find_gpu
from higgsc.catalog.memory import memory as memory_of
from higgsc.catalog.quantized import Quantize
from higgsc.catalog.setup import Checkpointing, Sample, Setup
from higgsc.compiler.adapter import adapter_of
from higgsc.compiler.batch import batch_of
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.mesh import tensor_sizes, undivided
from higgsc.compiler.passes.whisper import whisper_width

MODES: tuple[Checkpointing, ...] = ("none", "selective", "full")
"""Of activation checkpointing, the fastest first."""


def memory(ir: Ir, sink: Sink) -> Ir:
    """Refuse micro-batches that, at the longest samples allowed, need more memory than the named GPU has.

    The longest, because a run that meets them in its thousandth step has lost a thousand steps.
    """
    if "training.accumulation" not in ir.derived:
        return ir  # the mesh is wrong, and has been reported
    ir = _kept(ir)
    found = estimate_of(ir)
    if found.gpu is None or found.fits:
        return ir
    need, have = found.memory.total / 1e9, found.gpu.memory_bytes / 1e9
    seconds, batch = ir.spec.data.limits.max_seconds, batch_of(ir)
    tokens = found.samples * found.longest.tokens
    notes = [] if found.by_tokens else [f"clips of {seconds:g} s, the longest that `data.limits.max_seconds` lets in"]
    if ir.spec.training.activation_checkpointing is None:
        notes.append(f"{found.checkpointing} activation checkpointing, which keeps the least")
    sink.add(
        Diagnostic(
            "HC331",
            f"a micro-batch of {batch.micro:,} {batch.unit} needs {need:.0f} of the {found.gpu.name}'s {have:.0f} GB",
            ir.label(f"training.micro_batch.{batch.unit}", f"up to {tokens:,} tokens at a time"),
            secondary=(Label(ir.label("hardware").span, f"{have:.0f} GB each, of which {RESERVE:.0%} stays free"),),
            notes=(f"counted with {', and with '.join(notes)}",) if notes else (),
            help=_way_out(ir, found),
        )
    )
    return ir


def _kept(ir: Ir) -> Ir:
    """Derive `training.activation_checkpointing` where the spec leaves it open: the least that makes the rest fit."""
    if ir.spec.training.activation_checkpointing is not None:
        return ir
    found, gpu = estimate_of(ir), gpu_of(ir)
    inputs = (f"training.micro_batch.{batch_of(ir).unit}", "data.limits.max_seconds", "precision", "hardware")
    if gpu is None:
        mode, why = MODES[0], f"no memory to compare with: {found.unknown}"
    else:
        setup = setup_of(ir)
        mode = next((mode for mode in MODES if _fits_keeping(setup, mode, found)), MODES[-1])
        needs = (memory_of(replace(setup, activation_checkpointing=m), found.longest, found.samples) for m in MODES)
        said = ", ".join(f"{need.total / 1e9:.1f} GB with {m}" for need, m in zip(needs, MODES, strict=True))
        why = f"needs {said}, of the {gpu.name}'s {gpu.memory_bytes / 1e9:.0f}, of which {RESERVE:.0%} stays free"
    return ir.derive("training.activation_checkpointing", mode, why, by="memory", inputs=inputs)


def checkpointing_of(ir: Ir) -> Checkpointing:
    """What a layer keeps; before it has been derived, the least."""
    derived = ir.derived.get("training.activation_checkpointing")
    mode = ir.spec.training.activation_checkpointing if derived is None else derived.value
    return next((known for known in MODES if known == mode), MODES[-1])


def setup_of(ir: Ir, accumulation: int | None = None) -> Setup:
    """What the costs depend on, from a state whose mesh is sound.

    Args:
        accumulation: Micro-batches of a step, where none has been derived.
    """
    return Setup(
        shape=ir.shape,
        precision=ir.spec.precision,
        lora=adapter_of(ir),
        replicate=ir.integer("parallelism.replicate"),
        shard=ir.spec.parallelism.shard,
        accumulation=ir.integer("training.accumulation") if accumulation is None else accumulation,
        activation_checkpointing=checkpointing_of(ir),
        tensor=ir.spec.parallelism.tensor,
        sequence=ir.spec.parallelism.sequence,
        whisper=whisper_width(ir),
        quantize=ir.spec.model.quantize,
    )


def gpu_of(ir: Ir) -> Gpu | None:
    """The GPU that the hardware names, if it names one that the catalog knows."""
    hardware = ir.spec.hardware
    return find_gpu(hardware.gpu) if hardware.device == "cuda" and hardware.gpu is not None else None


def estimate_of(ir: Ir, seconds: float | None = None) -> Estimate:
    """Memory and speed of a spec whose mesh is sound.

    Args:
        seconds: Typical length of a clip, for the speed; `TYPICAL_SECONDS` within the spec's limits if not given.
    """
    spec = ir.spec
    limits, hardware = spec.data.limits, spec.hardware
    gpu, batch = gpu_of(ir), batch_of(ir)
    if hardware.device == "cpu":
        unknown = "the hardware is a CPU"
    else:
        unknown = f"`hardware: {str(hardware).replace('×', 'x')}` names no GPU"
    return estimate(
        setup_of(ir),
        samples=batch.micro,
        tokens=batch.micro if batch.unit == "tokens" else None,
        max_seconds=limits.max_seconds,
        typical_seconds=seconds or max(limits.min_seconds, min(limits.max_seconds, TYPICAL_SECONDS)),
        gpu=gpu,
        unknown=None if gpu is not None else unknown,
        steps=spec.training.steps,
    )


def _less(setup: Setup) -> tuple[Checkpointing, ...]:
    """What keeps less than now, the cheapest first."""
    return MODES[MODES.index(setup.activation_checkpointing) + 1 :]


def _fits_keeping(setup: Setup, mode: Checkpointing, found: Estimate) -> bool:
    assert found.gpu is not None
    return fits(replace(setup, activation_checkpointing=mode), found.longest, found.samples, found.gpu)


def _way_out(ir: Ir, found: Estimate) -> str:
    """The largest micro-batch that fits and divides the global batch; the cheapest activation checkpointing, the
    fewest shards and the least rounding of the base that help, or the smallest tensor groups; what is left."""
    assert found.gpu is not None
    assert found.largest is not None
    setup, batch = setup_of(ir), batch_of(ir)
    ranks = setup.replicate * setup.shard
    share = batch.whole // ranks
    fitting = next((share // n for n in range(1, share + 1) if share % n == 0 and share // n <= found.largest), None)
    if found.by_tokens and (fitting or 0) < Sample.of_seconds(*2 * (ir.spec.data.limits.max_seconds,)).tokens:
        fitting = None  # a row has to hold the longest samples
    shards = (d for d in range(setup.shard + 1, ranks + 1) if ranks % d == 0)
    shard = next((d for d in shards if fits(with_shards(setup, d), found.longest, found.samples, found.gpu)), None)
    keeping = next((mode for mode in _less(setup) if _fits_keeping(setup, mode, found)), None)
    ways = [f"`micro_batch: {{{batch.unit}: {fitting}}}` fits"] if fitting else []
    ways += [f"`training: {{activation_checkpointing: {keeping}}}` fits"] if keeping else []
    ways += [f"{_parallelism(with_shards(setup, shard))} fits"] if shard else []
    ways += [f"`model: {{quantize: {scheme}}}` fits" for scheme in _rounded(setup, found)[:1]]
    if ways:
        return ", and so does ".join(way if not i else way.removesuffix(" fits") for i, way in enumerate(ways))
    divided = _smallest_group(ir, setup, found)
    seconds = None if found.by_tokens else _longest_clip(ir, setup, found.samples, found.gpu)
    if divided is not None:
        shorter = f", and so do clips of up to `max_seconds: {seconds}`" if seconds else ""
        return f"{divided} fits{shorter}"
    if setup.lora is None and (gpus := _gpus_for_whole(setup, found)) is not None:
        more = f"`parallelism: {{shard: {gpus}}}` on {gpus} of them fits"
        return f"{more}, and so may an adapter: leave `lora: null` out"
    if seconds is None:
        return "take a GPU with more memory"
    return f"write `max_seconds: {seconds}` in `data.limits`, or take a GPU with more memory"


def _rounded(setup: Setup, found: Estimate) -> list[Quantize]:
    """What a frozen base can be rounded to so that a micro-batch fits, the least rounding first."""
    assert found.gpu is not None
    if setup.lora is None or setup.lora.dora or setup.tensor > 1:
        return []
    rougher: dict[Quantize | None, tuple[Quantize, ...]] = {None: ("int8", "nf4"), "fp8": ("nf4",), "int8": ("nf4",)}
    schemes = rougher.get(setup.quantize, ())
    return [s for s in schemes if fits(replace(setup, quantize=s), found.longest, found.samples, found.gpu)]


def _smallest_group(ir: Ir, setup: Setup, found: Estimate) -> str | None:
    """The smallest tensor groups, with sequence parallelism, with which a micro-batch fits, as they are written."""
    assert found.gpu is not None
    if undivided(ir):
        return None
    processes = ir.integer("hardware.processes")
    for size in tensor_sizes(ir):
        if size > setup.tensor and processes % size == 0:
            larger = with_tensor(setup, size)
            if fits(larger, found.longest, found.samples, found.gpu):
                return _parallelism(larger)
    return None


def _gpus_for_whole(setup: Setup, found: Estimate) -> int | None:
    """The fewest GPUs, a power of two, between which a whole model can be divided to fit."""
    assert found.gpu is not None
    for gpus in (1 << power for power in range(1, 11)):
        wider = replace(setup, replicate=1, shard=gpus)
        if gpus > setup.shard and fits(wider, found.longest, found.samples, found.gpu):
            return gpus
    return None


def _parallelism(setup: Setup) -> str:
    """A mesh as it is written."""
    sizes = [f"{name}: {size}" for name, size in (("shard", setup.shard), ("tensor", setup.tensor)) if size > 1]
    return f"`parallelism: {{{', '.join([*sizes, 'sequence: true'] if setup.sequence else sizes)}}}`"


def _longest_clip(ir: Ir, setup: Setup, samples: int, gpu: Gpu) -> int | None:
    """The longest clips, in whole seconds, of which a micro-batch fits; None if no length in the limits does."""
    limits = ir.spec.data.limits
    lengths = range(int(limits.min_seconds) + 1, ceil(limits.max_seconds))
    count = bisect_left(lengths, True, key=lambda s: not fits(setup, Sample.of_seconds(s, s), samples, gpu))
    return lengths[count - 1] if count else None
