"""From derived values to steps: (encode →) prepare → train → merge → evaluate, each with its job file."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Any

from higgsc import __version__
from higgsc.compiler.adapter import adapter_of, as_peft
from higgsc.compiler.batch import batch_of
from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import checkpointing_of
from higgsc.compiler.passes.whisper import projector_parameters
from higgsc.compiler.plan import Resources, Step
from higgsc.contract import jobs
from higgsc.spec.training import Evaluate


def steps(ir: Ir, sink: Sink) -> Ir:
    """Build the steps.

    `encode` is there if it is divided into shards. `merge` needs `train`, `evaluate` needs `merge`; both can be
    switched off. Where the whole model is trained, or a Whisper listens, nothing is merged, and `evaluate` needs
    `train`.
    """
    if sink.error_count:
        return ir  # there is nothing sound to build steps from
    made = [_encode(ir)] if ir.spec.data.prepare.shards > 1 else []
    made += [_prepare(ir), _train(ir)]
    if ir.spec.merge is not None:
        made.append(_merge(ir))
    if ir.spec.evaluate is not None and (ir.spec.merge is not None or _unmerged(ir)):
        made.append(_evaluate(ir))
    return replace(ir, steps=tuple(made))


def _unmerged(ir: Ir) -> bool:
    """Whether the checkpoints are evaluated as they are."""
    return ir.spec.lora is None or ir.spec.model.whisper is not None


def _encode(ir: Ir) -> Step:
    shards = ir.spec.data.prepare.shards
    job = jobs.EncodeJob(**_common(ir), **_speech(ir), shards=shards)
    made = _step(ir, job, f"encode the recordings, in {shards} shards", needs=(), whole_machine=False)
    return replace(made, tasks=shards)


def _prepare(ir: Ir) -> Step:
    data = ir.spec.data
    job = jobs.PrepareJob(
        **_common(ir),
        **_speech(ir),
        validation_fraction=data.validation.fraction,
        validation_by=data.validation.by,
        store=ir.text("data.store"),
    )
    if data.prepare.shards > 1:
        return _step(ir, job, "put the encoded recordings together", needs=("encode",), whole_machine=False)
    return _step(ir, job, "read the speech data, encode every recording once", needs=(), whole_machine=False)


def _speech(ir: Ir) -> dict[str, Any]:
    data = ir.spec.data
    return {
        "sources": tuple(jobs.DataSource(**source.model_dump()) for source in data.train),
        "roots": data.roots,
        "text": jobs.TextJob(**data.text.model_dump()),
        "limits": jobs.DataLimits(**data.limits.model_dump()),
        "cache": ir.text("data.prepare.cache"),
        "workers": data.prepare.workers,
    }


def _train(ir: Ir) -> Step:
    spec = ir.spec
    training, batch = spec.training, batch_of(ir)
    job = jobs.TrainJob(
        **_common(ir),
        store=ir.text("data.store"),
        precision=spec.precision,
        mesh=jobs.MeshJob(
            replicate=ir.integer("parallelism.replicate"),
            shard=spec.parallelism.shard,
            tensor=spec.parallelism.tensor,
            sequence=spec.parallelism.sequence,
        ),
        batch=jobs.BatchJob(
            **{f"global_{batch.unit}": batch.whole, f"micro_{batch.unit}": batch.micro},
            accumulation=ir.integer("training.accumulation"),
        ),
        lora=_lora(ir),
        quantize=spec.model.quantize,
        optimizer=jobs.OptimizerJob(
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            decay=training.decay,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            epochs=training.epochs,
            steps=training.steps,
        ),
        loss=jobs.LossJob(**spec.loss.model_dump()),
        checkpoint=jobs.CheckpointJob(
            every_steps=spec.checkpoint.every_steps,
            keep_last=spec.checkpoint.keep_last,
            keep_every=spec.checkpoint.keep_every,
            best=spec.checkpoint.best,
            samples=_samples(ir),
        ),
        checkpoints=f"{ir.text('output')}/checkpoints",
        log_every_steps=training.log_every_steps,
        curriculum=None
        if training.curriculum is None
        else jobs.LengthJob(**training.curriculum.model_dump(), max_seconds=spec.data.limits.max_seconds),
        tracking=jobs.TrackingJob(**spec.tracking.model_dump()),
        activation_checkpointing=checkpointing_of(ir),
        compile=training.compile,
    )
    return _step(
        ir,
        job,
        "train the whole model" if spec.lora is None else "train the LoRA adapter",
        needs=("prepare",),
        whole_machine=True,
    )


def _samples(ir: Ir) -> jobs.SamplesJob | None:
    """The prompts of the evaluation after the training, spoken the same way."""
    evaluate, count = ir.spec.evaluate or Evaluate(), ir.spec.checkpoint.samples
    if count == 0:
        return None  # so that the train step does not depend on how it is evaluated
    return jobs.SamplesJob(count=count, prompts=evaluate.prompts, temperature=evaluate.temperature)


def _lora(ir: Ir) -> jobs.LoraJob | None:
    lora, shape = ir.spec.lora, adapter_of(ir)
    if lora is None or shape is None:
        return None
    return jobs.LoraJob(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=shape.targets,
        full=shape.full,
        rank_pattern=dict(shape.rank_pattern),
        alpha_pattern=as_peft(lora.alpha_pattern, shape.modules(ir.shape)),
        scaling=lora.scaling,
        dora=lora.dora,
        start=lora.start,
        module_count=ir.integer("lora.module_count"),
        trainable_parameters=ir.integer("training.trainable_parameters") - projector_parameters(ir),
    )


def _merge(ir: Ir) -> Step:
    assert ir.spec.merge is not None
    job = jobs.MergeJob(
        **_common(ir),
        checkpoints=f"{ir.text('output')}/checkpoints",
        select=ir.spec.merge.select,
        best=ir.spec.checkpoint.best,
        dtype=ir.spec.merge.dtype,
        quantize=ir.spec.merge.quantize,
        merged=f"{ir.text('output')}/merged",
    )
    return _step(ir, job, "fold the adapter into the base", needs=("train",), whole_machine=False)


def _evaluate(ir: Ir) -> Step:
    assert ir.spec.evaluate is not None
    output, best, unmerged = ir.text("output"), ir.spec.checkpoint.best, _unmerged(ir)
    select = "best" if unmerged or ir.spec.merge is None else ir.spec.merge.select
    trained = jobs.SelectJob(checkpoints=f"{output}/checkpoints", select=select, best=best)
    job = jobs.EvaluateJob(
        **_common(ir),
        store=ir.text("data.store"),
        merged=None if unmerged else f"{output}/merged",
        trained=trained,
        samples=ir.spec.evaluate.samples,
        prompts=ir.spec.evaluate.prompts,
        temperature=ir.spec.evaluate.temperature,
        language=ir.spec.evaluate.language,
        recogniser=ir.spec.evaluate.recogniser,
        similarity=ir.spec.evaluate.similarity,
        spec=f"{ir.build}/resolved.yaml",
        evaluation=f"{ir.text('output')}/evaluation",
    )
    return _step(
        ir,
        job,
        f"score held-out samples, speak {ir.spec.evaluate.prompts} prompts",
        needs=("train",) if unmerged else ("merge",),
        whole_machine=False,
    )


def _common(ir: Ir) -> dict[str, Any]:
    model = ir.spec.model
    return {
        "higgsc": __version__,
        "name": ir.spec.name,
        "root": posixpath.relpath(".", f"{ir.build}/jobs"),
        "run": ir.text("output"),
        "seed": ir.spec.seed,
        "device": ir.spec.hardware.device,
        "model": jobs.ModelRef(
            base=model.base,
            revision=model.revision,
            audio_tokenizer=model.audio_tokenizer,
            audio_tokenizer_revision=model.audio_tokenizer_revision,
            whisper=None
            if model.whisper is None
            else jobs.WhisperRef(
                encoder=model.whisper.encoder,
                revision=model.whisper.revision,
                width=ir.integer("model.whisper.width"),
            ),
        ),
    }


def _step(ir: Ir, job: Any, title: str, *, needs: tuple[str, ...], whole_machine: bool) -> Step:
    hardware = ir.spec.hardware
    processes = hardware.gpus_per_node if whole_machine else 1
    job_path = f"{ir.build}/jobs/{job.step}.json"
    return Step(
        name=job.step,
        title=title,
        argv=("python", "-m", "higgsc", "run-step", job_path),
        needs=needs,
        resources=Resources(
            nodes=hardware.nodes if whole_machine else 1,
            processes_per_node=processes,
            gpus_per_node=processes if hardware.device == "cuda" else 0,
            gpu=hardware.gpu if hardware.device == "cuda" else None,
        ),
        job=job,
        interruptible=job.step == "train",
        job_path=job_path,
    )
