"""The train step: from the job file to an adapter or a model, in as many attempts as it takes."""

from __future__ import annotations

import faulthandler
import logging
from contextlib import ExitStack

from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import ExitCode, Interrupted, StepError, StepResult
from higgsc.contract.publish import refused_by_disk
from higgsc.contract.receipts import sha256_file
from higgsc.contract.state import write_state
from higgsc.data.loading import first_line
from higgsc.data.places import fetch_store, store_path
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.checkpoints.checkpoint import (
    TRAINING_METRIC,
    VALIDATION_METRIC,
    best_checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
)
from higgsc.train.checkpoints.progress import read_progress
from higgsc.train.checkpoints.resume import find_start
from higgsc.train.checkpoints.shelf import prune_checkpoints
from higgsc.train.faults.lock import hold_run
from higgsc.train.faults.rehearsal import explained
from higgsc.train.faults.watchdog import record_collectives
from higgsc.train.model.adapter import WEIGHTS_FILE
from higgsc.train.parallel.contact import lost_contact
from higgsc.train.parallel.mesh import Mesh, open_mesh
from higgsc.train.report.screen import training_log
from higgsc.train.report.tracking.open import check_trackers
from higgsc.train.rows.plan import Plan, plan_of
from higgsc.train.training import Training

logger = logging.getLogger(__name__)


def run(job: TrainJob, context: StepContext) -> StepResult | Interrupted:
    """Train, validating and saving at every checkpoint and at the end.

    Runs the same in one process and under torchrun. Goes on from the newest whole checkpoint as if it had never
    stopped; where the training is finished, it returns at once what it returned then. Asked to stop
    (`higgsc.contract.stop`), it saves at the end of the step and returns how far it came.

    Raises:
        StepError: If the store, the base, the devices or the checkpoints are not what the job needs, if another
            training is at work in the run's folder or the disk is full (74), if memory does not suffice (71), if
            another process is lost, or if losses or gradients stop being finite and going back does not help.
    """
    with training_log(context.path(job.run), enabled=context.is_first):
        return _run(job, context)


def _run(job: TrainJob, context: StepContext) -> StepResult | Interrupted:
    store = Store.open(fetch_store(job.store, job, context))
    logs = context.path(job.run) / "logs"
    if not faulthandler.is_enabled():
        faulthandler.enable()  # so that SIGBUS, of a file that shrank under a memory map, leaves a stack
    if job.device == "cuda" and context.world_size > 1:
        record_collectives(logs)
    plan = plan_of(job, store)
    total = plan.total_steps(job.optimizer)
    try:
        with (
            explained(job),
            open_mesh(
                job.mesh,
                job.device,
                rank=context.rank,
                world_size=context.world_size,
                everything=job.lora is None,
            ) as mesh,
        ):
            interrupted = _train(job, context, mesh, store, plan, total)
    except OSError as error:
        if (refused := refused_by_disk(error, context.path(job.run))) is not None:
            raise refused from error
        raise
    except RuntimeError as error:
        if context.world_size == 1 or not lost_contact(error):
            raise
        raise StepError(
            f"lost contact with the other processes: {first_line(error)}",
            code=ExitCode.IO,
            help="one of them ended or hangs; its own message, if it left one, is in this log, and where it hung in "
            f"{logs}/stacks-*.txt; start the step again to go on from the newest checkpoint",
        ) from error
    return interrupted or _result(job, context, total)


def _train(job: TrainJob, context: StepContext, mesh: Mesh, store: Store, plan: Plan, total: int) -> Interrupted | None:
    """Train to the end, or until asked to stop."""
    folder, run = context.path(job.checkpoints), context.path(job.run)
    store_sha256 = sha256_file(store.path / STORE_FILE)
    with ExitStack() as held:

        def find() -> int:
            held.enter_context(hold_run(run))
            check_trackers(job)
            Store.open(store.path, verify=True)
            start = find_start(folder, job, store_sha256=store_sha256, total=total)
            prune_checkpoints(folder, job.checkpoint)  # killed after a save, a process had no time for it
            write_state(run, job.step, "running", start, total)
            return start

        start = mesh.on_first(find)
        checkpoint = checkpoint_path(folder, start) if start else None
        if checkpoint is not None:
            if start == total and not read_checkpoint(checkpoint).interrupted:
                logger.info("finished before: %s is there", checkpoint.name)
                return None
            logger.info("going on from %s", checkpoint.name)
        training = Training(
            job, context, mesh, store, plan, total=total, store_sha256=store_sha256, checkpoint=checkpoint
        )
        return training.run()


def _result(job: TrainJob, context: StepContext, total: int) -> StepResult:
    """What a finished training came to, read from its last checkpoint, so that it is always the same."""
    folder = context.path(job.checkpoints)
    last = checkpoint_path(folder, total)
    figures: dict[str, float | int | str] = dict(read_checkpoint(last).metrics)
    name = VALIDATION_METRIC if VALIDATION_METRIC in figures else TRAINING_METRIC
    summary = f"{total} steps" + (f", {name} {figures[name]:.4f}" if name in figures else "")
    if context.is_first:
        write_state(context.path(job.run), job.step, "done", total, total)
        best = best_checkpoint(list_checkpoints(folder), job.checkpoint.best)
        summary += f", best checkpoint {best.path.name}"
        figures["best_step"] = best.step
    # A training that has begun no longer needs what it started from.
    start_path = None if job.lora is None else job.lora.start
    start = [] if start_path is None else [context.path(start_path) / WEIGHTS_FILE]
    seconds = round(read_progress(last).seconds, 1)
    return StepResult(
        summary=summary,
        inputs=(store_path(job.store, job, context) / STORE_FILE, *(path for path in start if path.is_file())),
        outputs=(folder, context.path(job.run) / "metrics.jsonl"),
        figures=figures | {"steps": total, "seconds": seconds},
    )
