"""The train step: from the job file to an adapter, in as many attempts as it takes."""

from __future__ import annotations

import logging

import torch

from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import ExitCode, Interrupted, StepError, StepResult
from higgsc.contract.receipts import sha256_file
from higgsc.contract.state import write_state
from higgsc.data.loading import first_line
from higgsc.data.places import fetch_store, store_path
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.batches import total_steps
from higgsc.train.checkpoint import (
    TRAINING_METRIC,
    VALIDATION_METRIC,
    best_checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
)
from higgsc.train.mesh import Mesh, lost_contact, open_mesh
from higgsc.train.progress import read_progress
from higgsc.train.resume import find_start
from higgsc.train.training import Training

logger = logging.getLogger(__name__)


def run(job: TrainJob, context: StepContext) -> StepResult | Interrupted:
    """Train, validating and saving at every checkpoint and at the end.

    Runs the same in one process and under torchrun. Goes on from the newest whole checkpoint as if it had never
    stopped; where the training is finished, it returns at once what it returned then. Asked to stop
    (`higgsc.contract.stop`), it saves at the end of the step and returns how far it came.

    Raises:
        StepError: If the store, the base, the devices or the checkpoints are not what the job needs, if the disk is
            full (74), if memory does not suffice, if another process is lost, or if the loss or a gradient stops
            being finite; nothing is saved from that step on.
    """
    store = Store.open(fetch_store(job.store, job, context))
    total = total_steps(job.optimizer, samples=len(store.train), global_samples=job.batch.global_samples)
    try:
        with open_mesh(job.mesh, job.device, rank=context.rank, world_size=context.world_size) as mesh:
            interrupted = _train(job, context, mesh, store, total)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(job, error) from error
    except RuntimeError as error:
        if context.world_size == 1 or not lost_contact(error):
            raise
        raise StepError(
            f"lost contact with the other processes: {first_line(error)}",
            code=ExitCode.IO,
            help="one of them ended or hangs, and its own message, if it left one, is in this log; "
            "start the step again to go on from the newest checkpoint",
        ) from error
    return interrupted or _result(job, context, total)


def _train(job: TrainJob, context: StepContext, mesh: Mesh, store: Store, total: int) -> Interrupted | None:
    """Train to the end, or until asked to stop."""
    folder = context.path(job.checkpoints)
    store_sha256 = sha256_file(store.path / STORE_FILE)

    def find() -> int:
        start = find_start(folder, job, store_sha256=store_sha256, total=total)
        write_state(context.path(job.run), job.step, "running", start, total)
        return start

    start = mesh.on_first(find)
    checkpoint = checkpoint_path(folder, start) if start else None
    if checkpoint is not None:
        if start == total and not read_checkpoint(checkpoint).interrupted:
            logger.info("finished before: %s is there", checkpoint.name)
            return None
        logger.info("going on from %s", checkpoint.name)
    training = Training(job, context, mesh, store, total=total, store_sha256=store_sha256)
    if checkpoint is not None:
        training.restore(checkpoint)
    return training.run()


def _result(job: TrainJob, context: StepContext, total: int) -> StepResult:
    """What a finished training came to, read from its last checkpoint, so that it is always the same."""
    folder = context.path(job.checkpoints)
    last = checkpoint_path(folder, total)
    figures: dict[str, float | int | str] = dict(read_checkpoint(last).metrics)
    name = VALIDATION_METRIC if VALIDATION_METRIC in figures else TRAINING_METRIC
    summary = f"{total} steps, {name} {figures[name]:.4f}"
    if context.is_first:
        write_state(context.path(job.run), job.step, "done", total, total)
        best = best_checkpoint(list_checkpoints(folder))
        summary += f", best checkpoint {best.path.name}"
        figures["best_step"] = best.step
    seconds = round(read_progress(last).seconds, 1)
    return StepResult(
        summary=summary,
        inputs=(store_path(job.store, job, context) / STORE_FILE,),
        outputs=(folder, context.path(job.run) / "metrics.jsonl"),
        figures=figures | {"steps": total, "seconds": seconds},
    )


def _out_of_memory(job: TrainJob, error: torch.OutOfMemoryError) -> StepError:
    samples, shard = job.batch.micro_samples, job.mesh.shard
    fewer = f"lower `training.micro_batch.samples` (now {samples}); the global batch stays the same"
    more = f"raise `parallelism.shard` (now {shard}) so that more GPUs share one copy of the base"
    return StepError(
        f"out of GPU memory: {first_line(error)}",
        help=f"{fewer}, or {more}; training goes on from the newest checkpoint" if samples > 1 else more,
    )
