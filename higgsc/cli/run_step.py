"""`higgsc run-step`: one process of one step, as the emitted scripts start it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

from higgsc.cli.quiet import quiet_libraries
from higgsc.contract import jobs, stop
from higgsc.contract.jobs import StepContext, load_job
from higgsc.contract.outcome import ExitCode, Interrupted, StepError, StepResult
from higgsc.contract.receipts import put_receipt, receipt_of, receipt_path
from higgsc.contract.shards import put_shard_receipt
from higgsc.contract.state import write_state


@click.command("run-step")
@click.argument("job_file", type=click.Path(path_type=Path))
@click.option(
    "--shard", type=click.IntRange(0), help="Of a step that is divided: its number, from 0; all if not given."
)
def command(job_file: Path, shard: int | None) -> None:
    """Carry out JOB_FILE. Under torchrun, one process of it.

    A training that is asked to stop (SIGUSR2, SIGTERM, Ctrl-C, or a file `stop` in the run's folder) saves a
    checkpoint and ends with exit code 0, but without a receipt; the same command goes on from there."""
    stop.listen()  # before torch and transformers are imported, which takes seconds
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    job = load_job(job_file)
    if not isinstance(job, jobs.TrainJob):
        stop.interrupt_instead()
    context = StepContext.of(job_file, job)
    run = context.path(job.run)
    started = time.monotonic()
    if context.is_first:  # a receipt stands for the last attempt, and this one has not finished yet
        receipt_path(run, job.step).unlink(missing_ok=True)
    outcome = _carry_out(job, context, shard)
    if not context.is_first:
        return
    if isinstance(outcome, Interrupted):
        write_state(run, job.step, "interrupted", outcome.done, outcome.total)
        click.echo(
            f"{job.step}: stopped after {outcome.done} of {outcome.total} {outcome.unit}, as asked; "
            "the same command goes on from there"
        )
        return
    seconds = time.monotonic() - started
    receipt = receipt_of(job.step, outcome, job_path=job_file, root=context.root, seconds=seconds)
    if shard is not None and isinstance(job, jobs.EncodeJob):
        put_shard_receipt(run, receipt, shard=shard, shards=job.shards)
    else:
        put_receipt(run, receipt)
    click.echo(f"{job.step}: {outcome.summary}")


def _carry_out(job: jobs.Job, context: StepContext, shard: int | None) -> StepResult | Interrupted:
    if shard is not None and not isinstance(job, jobs.EncodeJob):
        raise StepError(f"{job.step} has no shards", code=ExitCode.USAGE, help="leave `--shard` out")
    match job:
        case jobs.EncodeJob():
            from higgsc.data import encode

            return encode.run(job, context, shard)
        case jobs.PrepareJob():
            from higgsc.data import prepare

            return prepare.run(job, context)
        case jobs.TrainJob():
            from higgsc.train import step

            return step.run(job, context)
        case jobs.MergeJob():
            from higgsc.deploy.merge import step as merge_step

            return merge_step.run(job, context)
        case jobs.EvaluateJob():
            from higgsc.deploy.evaluate import step as evaluate_step

            return evaluate_step.run(job, context)
