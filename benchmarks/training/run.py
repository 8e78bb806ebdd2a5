"""The train step as it is, from the job to the last optimizer step, on a base of random weights that is on no disk."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.setup import Checkpointing, Setup
from higgsc.contract.jobs import (
    BatchJob,
    CheckpointJob,
    LoraJob,
    LossJob,
    MeshJob,
    ModelRef,
    OptimizerJob,
    StepContext,
    TrackingJob,
    TrainJob,
    load_job,
)
from higgsc.data.layout import Segments
from higgsc.data.store import StoredSample
from higgsc.data.store_writer import StoreWriter
from higgsc.train import step, training
from training.samples import Shape
from training.stock import TARGETS

BASE = "random"
ALONE = MeshJob(replicate=1, shard=1)
Watch = Callable[[training.Training, int], AbstractContextManager[Any]]
"""From the training and the number of an optimizer step (0-based) to what surrounds it."""


def job_of(
    shape: Shape,
    *,
    device: str,
    batch: BatchJob,
    steps: int,
    mesh: MeshJob = ALONE,
    checkpointing: Checkpointing = "none",
    compiled: bool = False,
) -> TrainJob:
    """A job like those that the compiler writes, which trains on the store in the same folder.

    float32 on a CPU and bfloat16 on a GPU, an adapter on every matrix of the layers, no figures before the last step.
    """
    adapter = AdapterShape(targets=tuple(TARGETS), rank=shape.rank)
    return TrainJob(
        higgsc="0",
        name="benchmark",
        root=".",
        run="run",
        seed=0,
        device="cuda" if device == "cuda" else "cpu",
        model=ModelRef(base=BASE, revision=None, audio_tokenizer="", audio_tokenizer_revision=None),
        store="store",
        precision="bf16" if device == "cuda" else "fp32",
        mesh=mesh,
        batch=batch,
        lora=LoraJob(
            rank=shape.rank,
            alpha=2 * shape.rank,
            dropout=0,
            targets=adapter.targets,
            module_count=len(adapter.modules(shape.catalog)),
            trainable_parameters=sum(adapter.parameters(shape.catalog).values()),
        ),
        optimizer=OptimizerJob(
            learning_rate=2e-4,
            warmup_steps=0,
            decay="constant",
            weight_decay=0,
            max_grad_norm=1,
            epochs=None,
            steps=steps,
        ),
        loss=LossJob(text=1, audio=1),
        checkpoint=CheckpointJob(every_steps=steps, keep_last=1),
        checkpoints="run/checkpoints",
        log_every_steps=steps,
        tracking=TrackingJob(to=()),
        activation_checkpointing=checkpointing,
        compile=compiled,
    )


def setup_of(shape: Shape, job: TrainJob) -> Setup:
    """What the compiler's predictions for the job follow from."""
    return Setup(
        shape=shape.catalog,
        precision=job.precision,
        lora=AdapterShape(targets=tuple(TARGETS), rank=shape.rank),
        replicate=job.mesh.replicate,
        shard=job.mesh.shard,
        accumulation=job.batch.accumulation,
        activation_checkpointing=job.activation_checkpointing,
    )


def write_store(path: Path, samples: Sequence[StoredSample]) -> None:
    """A store of these samples, in their order; a reference that is the same array is stored once."""
    clips: dict[int, int] = {}
    with StoreWriter(path, made_by={"base": BASE, "revision": None}) as store:

        def clip(codes: Any) -> int:
            if id(codes) not in clips:
                clips[id(codes)] = store.add_clip(codes, audio=bytes(32))
            return clips[id(codes)]

        for sample in samples:
            store.add_sample(
                Segments(prefix=sample.prefix, middle=sample.middle, suffix=sample.suffix),
                reference=clip(sample.reference),
                target=clip(sample.target),
                speaker=sample.speaker,
                validation=False,
                record={"id": sample.id},
            )


def train(path: Path, shape: Shape, watch: Watch) -> None:
    """Carry a job file out in this process, which may be one of several, and watch its optimizer steps.

    All but the base's origin is the trainer's own: reading the store, making rows ahead, votes, checks for numbers
    that are not finite, the figures and the checkpoint behind the last step.
    """
    job = load_job(path)
    assert isinstance(job, TrainJob)
    optimizer_step = training.Training._optimizer_step

    def watched(self: training.Training, number: int) -> None:
        with watch(self, number):
            optimizer_step(self, number)

    def load_base(*_: Any, dtype: torch.dtype, device: torch.device, **__: Any) -> Any:
        return shape.model(device=device, dtype=dtype)

    with (
        patch.object(training, "load_base", load_base),
        patch.object(training.Training, "_optimizer_step", watched),
    ):
        step.run(job, StepContext.of(path, job))
    gc.collect()
