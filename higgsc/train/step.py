"""The train step: a LoRA adapter on the store, from the job file to checkpoints."""

from __future__ import annotations

import logging
import math
import time

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import StepError, StepResult
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.batches import BatchPlan, pack, total_steps
from higgsc.train.checkpoint import (
    TRAINING_METRIC,
    VALIDATION_METRIC,
    best_checkpoint,
    clear_checkpoints,
    list_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)
from higgsc.train.loss import LossModule, objective
from higgsc.train.mesh import Mesh, open_mesh
from higgsc.train.metrics import FiniteGuard, LossMeter, MetricsWriter
from higgsc.train.model import adapter_parameters, add_lora, load_base
from higgsc.train.optimizer import adamw, clip_gradients, learning_rate, set_learning_rate
from higgsc.train.sequence import AudioTokens, build_sequence, label_counts
from higgsc.train.validate import validation_losses

logger = logging.getLogger(__name__)


def run(job: TrainJob, context: StepContext) -> StepResult:
    """Train, validating and saving at every checkpoint and at the end.

    Runs the same in one process and under torchrun. A run that starts again starts over: it deletes its earlier
    checkpoints, and says so.

    Raises:
        StepError: If the store, the base or the devices are not what the job needs, or if the loss or a gradient
            stops being finite; nothing is saved from that step on.
    """
    started = time.monotonic()
    with open_mesh(job.mesh, job.device, rank=context.rank, world_size=context.world_size) as mesh:
        store = Store.open(context.path(job.store))
        training = Training(job, context, mesh, store)
        figures = training.run()
    name = VALIDATION_METRIC if VALIDATION_METRIC in figures else TRAINING_METRIC
    summary = f"{training.total} steps, {name} {figures[name]:.4f}"
    checkpoints = context.path(job.checkpoints)
    if context.is_first:  # the others may be here before the last checkpoint is in place
        best = best_checkpoint(list_checkpoints(checkpoints))
        summary += f", best checkpoint {best.path.name}"
        figures["best_step"] = best.step
    seconds = round(time.monotonic() - started, 1)
    return StepResult(
        summary=summary,
        inputs=(context.path(job.store) / STORE_FILE,),
        outputs=(checkpoints, context.path(job.run) / "metrics.jsonl"),
        figures=figures | {"steps": training.total, "seconds": seconds},
    )


class Training:
    """One training run: the model, its optimizer, and the loop over optimizer steps.

    Attributes:
        total: Optimizer steps of the run.
    """

    def __init__(self, job: TrainJob, context: StepContext, mesh: Mesh, store: Store) -> None:
        self._job, self._context, self._mesh, self._store = job, context, mesh, store
        _check_base(job, store)
        self._plan = BatchPlan.of(job.batch, store.train, seed=job.seed, world_size=mesh.world_size)
        self.total = total_steps(job.optimizer, samples=len(store.train), global_samples=job.batch.global_samples)
        bf16 = job.precision == "bf16"
        base = load_base(
            job.model, root=context.root, dtype=torch.bfloat16 if bf16 else torch.float32, device=mesh.device
        )
        self._tokens = AudioTokens.of(base.config)
        self._model: PeftModel = add_lora(base, job.lora, job.seed)
        # Adapters are float32; autocast computes with them in the base's number format.
        self._autocast = torch.bfloat16 if bf16 else None
        self._module = LossModule(self._model).train()
        mesh.distribute(self._module)
        # Taken once: after a forward pass, FSDP2 may show a module's gathered parameters instead of its shards.
        self._adapter = adapter_parameters(self._model)
        self._parameters = list(self._adapter.values())
        self._optimizer = adamw(self._parameters, job.optimizer)
        # Dropout differs between processes and is the same from run to run.
        torch.manual_seed(int(np.random.SeedSequence((job.seed, mesh.rank)).generate_state(1, np.uint64)[0]))

        self._guard = FiniteGuard(mesh)
        self._since_log, self._since_checkpoint = LossMeter(mesh), LossMeter(mesh)
        self._writer = MetricsWriter(context.path(job.run), self.total, enabled=mesh.is_first)

    def run(self) -> dict[str, float]:
        """Train to the end; returns the last checkpoint's figures."""
        job, mesh = self._job, self._mesh
        if mesh.is_first:
            self._start_over()
        heartbeat = HeartbeatWriter(
            self._context.path(job.run), "train", unit="steps", total=self.total, enabled=mesh.is_first
        )
        heartbeat.beat(0, force=True)
        figures: dict[str, float] = {}
        message = ""
        with self._writer:
            window_start, window_tokens, window_samples = time.monotonic(), 0, 0
            for step in range(self.total):
                norm = self._optimizer_step(step)
                done = step + 1
                batch = self._plan.global_batch(step)
                window_tokens += int(self._store.lengths[batch].sum())
                window_samples += len(batch)

                at_checkpoint = done % job.checkpoint.every_steps == 0 or done == self.total
                if done % job.log_every_steps == 0 or at_checkpoint:
                    self._stop_if_not_finite()
                    values = self._since_log.means(job.loss)
                    seconds = time.monotonic() - window_start
                    values |= {
                        "learning_rate": learning_rate(step, job.optimizer, total=self.total),
                        "grad_norm": float(norm),
                        "epoch": done * job.batch.global_samples / len(self._store.train),
                        "tokens_per_second": window_tokens / seconds,
                        "samples_per_second": window_samples / seconds,
                    }
                    if at_checkpoint:
                        figures = self._checkpoint(done)
                        values |= {name: value for name, value in figures.items() if name.startswith("validation/")}
                    message = self._writer.write(done, values)
                    self._since_log.reset()
                    window_start, window_tokens, window_samples = time.monotonic(), 0, 0
                self._writer.advance(done)
                heartbeat.beat(done, message, force=done == self.total)
        return figures

    def _optimizer_step(self, step: int) -> Tensor:
        """Do optimizer step `step` (0-based); returns the gradient's norm, still on the device."""
        job, mesh = self._job, self._mesh
        frames = self._store.target_frames[self._plan.global_batch(step)]
        audio_labels, text_labels = (int(counts.sum()) for counts in label_counts(frames))
        losses = []
        rows = self._plan.micro_batches(step, mesh.rank)
        for number, row in enumerate(rows, start=1):
            batch = pack([build_sequence(self._store.sample(int(index)), self._tokens) for index in row])
            mesh.accumulate(self._module, last=number == len(rows))
            with torch.autocast(mesh.device.type, self._autocast, enabled=self._autocast is not None):
                sums = self._module(batch.to(mesh.device))
            loss = objective(sums, job.loss, audio_labels=audio_labels, text_labels=text_labels)
            mesh.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            for meter in (self._since_log, self._since_checkpoint):
                meter.add_sums(sums)
        for meter in (self._since_log, self._since_checkpoint):
            meter.add_labels(audio_labels, text_labels)

        mesh.reduce_gradients(self._parameters)
        norm = clip_gradients(self._parameters, job.optimizer.max_grad_norm)
        self._guard.watch(step + 1, norm, *losses)
        set_learning_rate(self._optimizer, learning_rate(step, job.optimizer, total=self.total))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _stop_if_not_finite(self) -> None:
        bad = self._guard.first_bad_step()
        if bad is not None:
            raise self._not_finite("the loss or a gradient", bad)

    def _not_finite(self, what: str, step: int) -> StepError:
        return StepError(
            f"{what} is not finite at step {step} of {self.total}; nothing was saved from there on",
            help="lower `training.learning_rate`, lengthen the warm-up, or train in fp32",
        )

    def _checkpoint(self, step: int) -> dict[str, float]:
        """Validate and save; returns the figures that were saved."""
        job, mesh = self._job, self._mesh
        figures = self._since_checkpoint.means(job.loss)
        self._since_checkpoint.reset()
        if len(self._store.validation):
            losses = validation_losses(
                self._module,
                self._store,
                self._store.validation,
                mesh=mesh,
                micro_samples=job.batch.micro_samples,
                autocast=self._autocast,
            )
            figures |= {VALIDATION_METRIC: losses.audio, "validation/text_loss": losses.text}
        weights = {name: mesh.whole(parameter) for name, parameter in self._adapter.items()}
        # The step's own loss and gradient were finite, but its update may still have broken the adapter.
        if not all(math.isfinite(figure) for figure in figures.values()):
            raise self._not_finite("the validation loss", step)
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise self._not_finite("the adapter", step)
        if mesh.is_first:
            folder = self._context.path(job.checkpoints)
            saved = save_checkpoint(folder, step, model=self._model, weights=weights, ref=job.model, metrics=figures)
            removed = prune_checkpoints(folder, job.checkpoint.keep_last)
            names = ", ".join(checkpoint.path.name for checkpoint in removed)
            logger.info("saved %s%s", saved.name, f", removed {names}" if removed else "")
        return figures

    def _start_over(self) -> None:
        folder = self._context.path(self._job.checkpoints)
        removed = clear_checkpoints(folder)
        if removed:
            logger.warning("starting over: removed %s of an earlier attempt", ", ".join(removed))


def _check_base(job: TrainJob, store: Store) -> None:
    """The store holds token ids, which mean nothing to another base."""
    made_for = store.made_by.get("base"), store.made_by.get("revision")
    if made_for != (job.model.base, job.model.revision):
        raise StepError(
            f"the store was prepared for the base `{made_for[0]}` at revision {made_for[1]}, "
            f"but the job trains `{job.model.base}` at revision {job.model.revision}",
            path=store.path / STORE_FILE,
            help="run the prepare step again",
        )
