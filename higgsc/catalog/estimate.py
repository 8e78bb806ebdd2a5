"""From costs to answers: does a training fit on a GPU, and how long does it take.

Memory follows from shapes and is checked against a trace. Speed does not: it rests on `UTILISATION`, an assumption that
every output has to name until this trainer has been measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.gpus import Gpu
from higgsc.catalog.memory import memory
from higgsc.catalog.memory_parts import Memory
from higgsc.catalog.quantized import Quantize
from higgsc.catalog.setup import Checkpointing, Sample, Setup

RESERVE = 0.1
"""Share of the GPU's memory that is kept free, an allowance and not a measurement: for the CUDA context, NCCL's
buffers, kernels' workspaces, one more layer that FSDP2 fetches ahead, and the allocator's fragmentation."""

UTILISATION = 0.25
"""Assumed share of the GPU's dense bf16 peak. This trainer has not been measured on a GPU. Published for LoRA in bf16
with fused kernels: 0.43 (NVIDIA NeMo AutoModel, Qwen2.5-7B on H100); for an eager full fine-tune of an 8B: 0.33
(torchtitan, H100). Less is assumed here, because nothing of it has been shown."""

TYPICAL_SECONDS = 10.0
"""Assumed length of a reference and of a target, for the speed; memory takes the longest that the spec allows."""

_MOST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a training is, if the GPU reaches `UTILISATION` of its peak."""

    sample: Sample
    """The length that is assumed for every sample."""
    target_seconds: float
    """Seconds of speech in its target."""
    flops_per_token: float
    """Operations of forward and backward pass, on all GPUs that see the token."""
    tokens_per_second: float
    """Of one GPU."""
    step_seconds: float
    """One optimizer step."""
    speech_hours_per_hour: float
    """Hours of target speech that all GPUs together train on in an hour."""
    gpus: int
    tensor: int
    """GPUs of a tensor group."""
    shard: int
    """Ranks that a model is sharded over."""
    quantize: Quantize | None
    """How the base is rounded; the speed is that of the base as it is."""
    total_hours: float | None
    """The whole training; None if its length is given in epochs, for the number of samples is not known."""

    @property
    def total_gpu_hours(self) -> float | None:
        return None if self.total_hours is None else self.total_hours * self.gpus

    @property
    def assumption(self) -> str:
        """What the figures rest on, in words; belongs beside every one of them."""
        talk = "" if self.tensor == 1 else "what tensor groups say to each other is not counted; "
        if self.shard > 1:
            talk += "what shards gather and scatter is not counted; "
        talk += "" if self.quantize is None else f"what a base in {self.quantize} gains or costs is not counted; "
        return (
            f"{UTILISATION:.0%} of the GPU's peak is assumed, with clips of {self.target_seconds:g} s; {talk}"
            "no run of this trainer has been measured on a GPU"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known about a training before it runs. What depends on an unknown GPU is None."""

    memory: Memory
    """At the longest samples that the spec allows."""
    longest: Sample
    """Their length; where batches are counted in tokens, a whole row as one sample."""
    samples: int
    """Of those in a micro-batch."""
    by_tokens: bool
    """Whether batches are counted in tokens."""
    checkpointing: Checkpointing
    """What a layer keeps."""
    gpu: Gpu | None
    fits: bool | None
    """Whether the memory, with `RESERVE` on top, is there."""
    largest: int | None
    """The largest micro-batch that fits, in samples of the longest kind, or in tokens; 0 if not even one does."""
    speed: Speed | None
    unknown: str | None
    """Why there is no verdict and no speed."""

    @property
    def largest_tokens(self) -> int | None:
        return self.largest if self.largest is None or self.by_tokens else self.largest * self.longest.tokens

    @property
    def row(self) -> str:
        """What the memory is counted for, in words."""
        tokens = f"{self.samples * self.longest.tokens:,} tokens"
        if self.checkpointing != "none":
            tokens += f", with {self.checkpointing} activation checkpointing"
        return f"a row of {tokens}" if self.by_tokens else f"{self.samples} of the longest samples allowed, {tokens}"


def usable(gpu: Gpu) -> int:
    """Bytes that a training may take."""
    return int(gpu.memory_bytes * (1 - RESERVE))


def fits(setup: Setup, sample: Sample, samples: int, gpu: Gpu) -> bool:
    """Whether micro-batches of `samples` samples fit."""
    return memory(setup, sample, samples).total <= usable(gpu)


def largest_batch(setup: Setup, sample: Sample, gpu: Gpu) -> int:
    """Samples in the largest micro-batch that fits; 0 if one sample is too much.

    Takes the accumulation as it is, so that the answer does not hang on which batches divide which.
    """
    return _largest(lambda samples: fits(setup, sample, samples, gpu))


def longest_row(setup: Setup, gpu: Gpu) -> int:
    """Tokens of the longest row that fits; 0 if none does."""
    return _largest(lambda tokens: fits(setup, Sample.of_tokens(tokens), 1, gpu))


def _largest(fitting: Callable[[int], bool]) -> int:
    low, high = 0, 1
    while high < _MOST and fitting(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle)
    return low


def speed(
    setup: Setup, seconds: float, samples: int, gpu: Gpu, *, steps: int | None, tokens: int | None = None
) -> Speed:
    """Speed on `replicate x shard x tensor` GPUs.

    Communication is not counted: with whole copies of the base, what moves once in a step are the adapter's gradients.
    Sharded, every layer is gathered in each micro-batch, and within a tensor group a row's activations move four times
    in every layer; that takes time that is left out here.

    Args:
        seconds: Assumed length of a sample's reference, and of its target.
        samples: Samples in a micro-batch.
        steps: Optimizer steps of the training, if known.
        tokens: Tokens in a micro-batch, where they are counted instead.
    """
    sample = Sample.of_seconds(seconds, seconds)
    row = samples * sample.tokens if tokens is None else tokens
    # A token attends to those before it in its sample, half of it on average.
    flops = flops_per_token(
        setup,
        keys=sample.tokens / 2,
        audio_share=sample.audio_rows / sample.tokens,
        labelled=sample.labelled_rows / sample.tokens,
    )
    of_group = gpu.bf16_tflops_dense * 1e12 * UTILISATION / flops
    tokens_per_second = of_group / setup.tensor
    step_seconds = setup.accumulation * row / of_group
    gpus = setup.replicate * setup.shard * setup.tensor
    samples_per_second = gpus * tokens_per_second / sample.tokens
    return Speed(
        sample=sample,
        target_seconds=seconds,
        flops_per_token=flops * setup.tensor,
        tokens_per_second=tokens_per_second,
        step_seconds=step_seconds,
        speech_hours_per_hour=samples_per_second * seconds,
        gpus=gpus,
        tensor=setup.tensor,
        shard=setup.shard,
        quantize=setup.quantize,
        total_hours=None if steps is None else steps * step_seconds / 3600,
    )


@lru_cache(maxsize=128)  # the points of a sweep, and the passes and files of a build, ask the same again
def estimate(
    setup: Setup,
    *,
    samples: int,
    max_seconds: float,
    typical_seconds: float,
    gpu: Gpu | None,
    unknown: str | None = None,
    steps: int | None = None,
    tokens: int | None = None,
) -> Estimate:
    """All of it.

    Args:
        samples: Samples in a micro-batch.
        max_seconds: Longest reference and longest target that the spec allows.
        typical_seconds: Assumed length of both, for the speed.
        gpu: None if it is not known; then `unknown` says why.
        steps: Optimizer steps of the training, if known.
        tokens: Tokens in a micro-batch, where they are counted instead of samples.
    """
    longest = Sample.of_seconds(max_seconds, max_seconds) if tokens is None else Sample.of_tokens(tokens)
    samples = samples if tokens is None else 1
    largest = None
    if gpu is not None:
        largest = largest_batch(setup, longest, gpu) if tokens is None else longest_row(setup, gpu)
    # The peak figure of the catalog is bfloat16's; float32 runs on other units, of which it says nothing.
    fast = gpu is not None and setup.precision == "bf16"
    return Estimate(
        memory=memory(setup, longest, samples),
        longest=longest,
        samples=samples,
        by_tokens=tokens is not None,
        checkpointing=setup.activation_checkpointing,
        gpu=gpu,
        fits=None if gpu is None else fits(setup, longest, samples, gpu),
        largest=largest,
        speed=speed(setup, typical_seconds, samples, gpu, steps=steps, tokens=tokens)
        if gpu is not None and fast
        else None,
        unknown=unknown if gpu is None or fast else "the catalog knows no float32 peak",
    )


def rounded(value: float) -> str:
    """Two significant digits with thousands separators: an estimate should not look like a measurement."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def duration(hours: float) -> str:
    """An estimated time for people: `35 min`, `1.8 h`, `120 h`."""
    return f"{rounded(hours)} h" if hours >= 1 else f"{rounded(hours * 60)} min"


def with_shards(setup: Setup, shard: int) -> Setup:
    """The same processes, with `shard` of them to a copy of the base."""
    return replace(setup, shard=shard, replicate=setup.replicate * setup.shard // shard)


def with_tensor(setup: Setup, tensor: int) -> Setup:
    """The same processes in tensor groups of `tensor`, which divide the sequence too; the global batch stays.

    They see fewer samples at a time, so more micro-batches are accumulated; shards are as many, if the processes allow.
    """
    ranks = setup.replicate * setup.shard * setup.tensor // tensor
    shard = gcd(setup.shard, ranks)
    accumulation = setup.accumulation * tensor // setup.tensor
    return replace(
        setup, tensor=tensor, sequence=True, shard=shard, replicate=ranks // shard, accumulation=accumulation
    )
