"""What every optimizer step trains on: the plan of a job's batches, by samples or by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.catalog.setup import Setup
from higgsc.contract.jobs import OptimizerJob, TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.store import Store
from higgsc.train.model.build import adapter_shape
from higgsc.train.rows.batches import BatchPlan
from higgsc.train.rows.order import Indices
from higgsc.train.rows.shared import Shared, shared_beginnings
from higgsc.train.rows.tokens import TokenPlan


class Plan(Protocol):
    """The samples of every optimizer step, for every process."""

    @property
    def shared(self) -> Shared | None:
        """Which samples share their beginning in a row."""

    def total_steps(self, optimizer: OptimizerJob) -> int:
        """Optimizer steps of a training: as given, or as many as fit into the epochs, at least one."""

    def epochs(self, steps: int) -> float:
        """How often the samples have been visited after so many steps."""

    def global_batch(self, step: int) -> Indices:
        """Samples of optimizer step `step` (0-based) as indices into the store."""

    def spared(self, step: int) -> Indices:
        """Positions that each sample of a step shares with the one before it, and does not take a second time."""

    def micro_batches(self, step: int, rank: int) -> Sequence[Indices]:
        """The rows of process `rank` in a step, each with its samples."""

    def others(self, samples: Indices) -> Sequence[Indices]:
        """Rows of samples that are not trained on, which share nothing."""

    def describe(self) -> str | None:
        """What the log says about rows; None where there is nothing to say."""

    def longest_row(self, steps: int) -> Indices:
        """The row with the most positions in the first `steps` steps; the first of several."""


def plan_of(job: TrainJob, store: Store) -> Plan:
    """Plan a job's batches.

    Raises:
        StepError: If there is nothing to train on, a sample is longer than a row, or micro-batch, accumulation and
            processes do not make up the global batch.
    """
    longer = np.maximum(store.reference_frames, store.target_frames)[store.train]
    lengths = None if job.curriculum is None else (job.curriculum, longer)
    if len(store.train) == 0:
        raise StepError("the store holds no training samples", help="see its rejected.jsonl for the reasons")
    if job.batch.micro_tokens is None:
        return BatchPlan.of(
            job.batch,
            store.train,
            seed=job.seed,
            world_size=job.mesh.data_parallel,
            positions=store.lengths,
            lengths=lengths,
        )
    if job.loss.contrastive is not None:
        raise StepError(
            "the contrastive loss compares as many samples on every process, and rows of tokens do not hold as many",
            code=ExitCode.USAGE,
            help="give `training.global_batch` and `training.micro_batch` in samples",
        )
    _expect_rows_to_hold(job.batch.micro_tokens, store)
    return TokenPlan(
        job.batch,
        store.train,
        seed=job.seed,
        world_size=job.mesh.data_parallel,
        positions=store.lengths,
        shared=shared_beginnings(store, store.train),
        cost=costs_of(job),
        lengths=lengths,
    )


def setup_of(job: TrainJob) -> Setup:
    """What the costs of a job depend on, counted without what activation checkpointing computes again."""
    return Setup(
        shape=shape_of(job.model.base),
        precision=job.precision,
        lora=adapter_shape(job.lora),
        replicate=job.mesh.replicate,
        shard=job.mesh.shard,
        accumulation=job.batch.accumulation,
        activation_checkpointing="none",
        tensor=job.mesh.tensor,
        sequence=job.mesh.sequence,
        quantize=job.quantize,
    )


def costs_of(job: TrainJob) -> tuple[float, float]:
    """FLOPs of a token beside attention, and of a token's attention to one other."""
    setup = setup_of(job)
    token = flops_per_token(setup, keys=0)
    return token, flops_per_token(setup, keys=1) - token


def _expect_rows_to_hold(tokens: int, store: Store) -> None:
    """Every sample fits into a row, those held out too."""
    long = np.flatnonzero(store.lengths > tokens)
    if not len(long):
        return
    longest = int(store.lengths.max())
    names = [str(store.record(int(number))["id"]) for number in long[:3]]
    more = f" and {len(long) - 3:,} more" if len(long) > 3 else ""
    raise StepError(
        f"rows of {tokens:,} tokens (`training.micro_batch.tokens`) are too short for "
        f"{len(long):,} of {len(store):,} samples: {', '.join(names)}{more}; the longest has {longest:,}",
        code=ExitCode.USAGE,
        help=f"set `training.micro_batch.tokens` to {longest:,} or more, or lower `data.limits.max_seconds`",
    )
