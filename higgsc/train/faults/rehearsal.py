"""Running out of memory at once, not after hours: before the first step, the longest row of the whole run.

The rehearsal is a forward and a backward pass whose result is thrown away. It happens on GPUs alone: what a CPU
process lacks is swapped or killed, and never reported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from higgsc.catalog.codec import FRAMES_PER_SECOND
from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line
from higgsc.data.store import Store
from higgsc.train.rows.order import Indices

REHEARSES = ("cuda",)
"""Types of devices on which there is a rehearsal."""

logger = logging.getLogger(__name__)


def rehearse(
    row: Indices,
    *,
    positions: int,
    job: TrainJob,
    store: Store,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    gradients: Callable[[], object],
) -> None:
    """Compute the gradients of a row and throw them away; no state and no random generator notices.

    Args:
        row: Samples of the store.
        positions: Of the row.
        job: For the message.
        store: For the message.
        parameters: The trainable ones.
        optimizer: Its moments are part of what has to fit; where they are not there yet, their place is taken.
        gradients: Computes the gradients of the row, as of a step.

    Raises:
        StepError: If memory does not suffice (71), with what to change.
    """
    device = parameters[0].device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            moments = [torch.empty_like(p) for p in parameters for _ in range(2) if not optimizer.state]
            gradients()
            del moments
    except torch.OutOfMemoryError as error:
        raise out_of_memory(job, error, (store, row, positions)) from error
    finally:
        optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        logger.info(
            "the longest row, of %d positions, takes %.1f of %.1f GiB",
            positions,
            torch.cuda.max_memory_allocated(device) / 2**30,
            torch.cuda.get_device_properties(device).total_memory / 2**30,
        )


@contextmanager
def explained(job: TrainJob) -> Iterator[None]:
    """Explain what else runs out of memory.

    Raises:
        StepError: Instead of torch's own error (71).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(job, error, None) from error


def _tensor_groups(job: TrainJob) -> str | None:
    """Twice the processes to a row: what else makes a row of one sample smaller; None where they cannot share it.

    The group stays on one machine; `torchrun` says how many processes this one has.
    """
    mesh, here = job.mesh, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    size = 2 * mesh.tensor
    if shape_of(job.model.base).indivisible(size) or job.lora is None or job.lora.dora or job.compile:
        return None
    if here % size:
        return f"`parallelism: {{tensor: {size}, sequence: true}}` on {size} GPUs of one machine"
    shard = mesh.shard if mesh.replicate % 2 == 0 else mesh.shard // 2
    sizes = f"shard: {shard}, tensor: {size}" if shard > 1 else f"tensor: {size}"
    return f"`parallelism: {{{sizes}, sequence: true}}`, so that {size} GPUs share each row"


def out_of_memory(job: TrainJob, error: torch.OutOfMemoryError, tried: tuple[Store, Indices, int] | None) -> StepError:
    """The error that says what to change.

    Args:
        job: What was to be trained.
        error: Torch's own.
        tried: The store, and the samples and positions of the row that did not fit, if it is known.
    """
    shard, batch = job.mesh.shard, job.batch
    ways = []
    if batch.micro_tokens is not None:
        ways.append(
            f"`training.micro_batch.tokens: {batch.micro_tokens // 2}` (now {batch.micro_tokens}; the global batch "
            "stays the same, but other samples share a row, so training starts anew)"
        )
    elif batch.micro_samples is not None and (samples := batch.micro_samples) > 1:
        per_rank = samples * batch.accumulation
        fewer = max(number for number in range(1, samples // 2 + 1) if per_rank % number == 0)
        ways.append(f"`training.micro_batch.samples: {fewer}` (now {samples}; the global batch stays the same)")
    what = ""
    if tried is not None:
        store, row, positions = tried
        clips = [(len(sample.reference), len(sample.target)) for sample in (store.sample(int(index)) for index in row)]
        longest = max(max(pair) for pair in clips) / FRAMES_PER_SECOND
        what = (
            f" with the longest row of the run, {len(row)} sample{'s' if len(row) > 1 else ''} "
            f"of {positions:,} positions, the longest clip {longest:.1f} s"
        )
        if batch.micro_tokens is None:
            ways.append(f"`data.limits.max_seconds: {max(1, int(longest * 2 / 3))}`")
    if (keeps := job.activation_checkpointing) != "full":
        ways.append(f"`training.activation_checkpointing: {'full' if keeps == 'selective' else 'selective'}`")
    if batch.micro_samples == 1 and (groups := _tensor_groups(job)) is not None:
        ways.append(groups)
    if job.lora is not None and not job.lora.dora and job.mesh.tensor == 1 and job.quantize != "nf4":
        ways.append("`model.quantize: nf4` (the frozen base in 4 bits; training starts anew)")
    more = 2 * shard
    if job.mesh.replicate % 2 == 0:
        ways.append(f"`parallelism.shard: {more}` (now {shard}), so that {more} GPUs share one copy of the base")
    else:
        ways.append(f"`parallelism.shard: {more}` (now {shard}) on more GPUs")
    return StepError(
        f"out of GPU memory{what}: {first_line(error)}",
        code=ExitCode.OUT_OF_MEMORY,
        help=f"set {', or '.join(ways)}; training goes on from the newest checkpoint, if there is one",
    )
