"""Running out of memory at once, not after hours: before the first step, the longest row of the whole run.

The rehearsal is a forward and a backward pass whose result is thrown away. It happens on GPUs alone: what a CPU
process lacks is swapped or killed, and never reported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from higgsc.catalog.codec import FRAMES_PER_SECOND
from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line
from higgsc.data.store import Store
from higgsc.train.rows.batches import BatchPlan, Indices

REHEARSES = ("cuda",)
"""Types of devices on which there is a rehearsal."""
_ROWS_AT_A_TIME = 1 << 20

logger = logging.getLogger(__name__)


def longest_row(plan: BatchPlan, lengths: NDArray[np.int64], batches: int) -> Indices:
    """The micro-batch with the most positions in a run; the first of several.

    Args:
        plan: Says which samples make up a row.
        lengths: Positions of each sample of the store.
        batches: Batches of the run.

    Returns:
        Its samples, `[micro_samples]`.
    """
    size = plan.micro_samples
    rows = batches * plan.global_samples // size
    longest, most = plan.stream(0, size), -1
    for first in range(0, rows, _ROWS_AT_A_TIME):
        samples = plan.stream(first * size, min(first + _ROWS_AT_A_TIME, rows) * size).reshape(-1, size)
        totals = lengths[samples].sum(axis=1)
        number = int(totals.argmax())
        if totals[number] > most:
            longest, most = samples[number], int(totals[number])
    return longest


def rehearse(
    row: Indices,
    *,
    job: TrainJob,
    store: Store,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    gradients: Callable[[Indices], object],
) -> None:
    """Compute the gradients of a row and throw them away; no state and no random generator notices.

    Args:
        row: Samples of the store.
        job: For the message.
        store: For the message.
        parameters: The trainable ones.
        optimizer: Its moments are part of what has to fit; where they are not there yet, their place is taken.
        gradients: Computes the gradients of rows `[rows, samples]`.

    Raises:
        StepError: If memory does not suffice (71), with what to change.
    """
    device = parameters[0].device
    # Of many micro-batches, two show what all do: the second runs beside the gradients of the first.
    rows = np.stack([row] * min(2, job.batch.accumulation))
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            moments = [torch.empty_like(p) for p in parameters for _ in range(2) if not optimizer.state]
            gradients(rows)
            del moments
    except torch.OutOfMemoryError as error:
        raise out_of_memory(job, error, (store, row)) from error
    finally:
        optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        logger.info(
            "the longest row, of %d positions, takes %.1f of %.1f GiB",
            store.lengths[row].sum(),
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


def out_of_memory(job: TrainJob, error: torch.OutOfMemoryError, tried: tuple[Store, Indices] | None) -> StepError:
    """The error that says what to change.

    Args:
        job: What was to be trained.
        error: Torch's own.
        tried: The store and the samples of the row that did not fit, if it is known.
    """
    samples, shard = job.batch.micro_samples, job.mesh.shard
    ways = []
    if samples > 1:
        per_rank = job.batch.micro_samples * job.batch.accumulation
        fewer = max(number for number in range(1, samples // 2 + 1) if per_rank % number == 0)
        ways.append(f"`training.micro_batch.samples: {fewer}` (now {samples}; the global batch stays the same)")
    what = ""
    if tried is not None:
        store, row = tried
        clips = [(len(sample.reference), len(sample.target)) for sample in (store.sample(int(index)) for index in row)]
        longest = max(max(pair) for pair in clips) / FRAMES_PER_SECOND
        what = (
            f" with the longest row of the run, {samples} sample{'s' if samples > 1 else ''} "
            f"of {int(store.lengths[row].sum()):,} positions, the longest clip {longest:.1f} s"
        )
        ways.append(f"`data.limits.max_seconds: {max(1, int(longest * 2 / 3))}`")
    if (keeps := job.activation_checkpointing) != "full":
        ways.append(f"`training.activation_checkpointing: {'full' if keeps == 'selective' else 'selective'}`")
    if samples == 1 and (groups := _tensor_groups(job)) is not None:
        ways.append(groups)
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
