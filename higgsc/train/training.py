"""One training: the model, its optimizer, and the loop over optimizer steps."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from peft import PeftModel

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.contract.state import write_state
from higgsc.contract.stop import asked_to_stop
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.assemble import assemble
from higgsc.train.batches import BatchPlan
from higgsc.train.checkpoint import VALIDATION_METRIC, read_checkpoint, save_checkpoint
from higgsc.train.loss import LossModule, objective
from higgsc.train.mesh import Mesh
from higgsc.train.metrics import FiniteGuard, LossMeter, MetricsWriter
from higgsc.train.model import adapter_parameters, add_lora, load_base
from higgsc.train.optimizer import adamw, clip_gradients, learning_rate, set_learning_rate
from higgsc.train.progress import Progress, moments, read_progress, restore, seed_dropout, writer
from higgsc.train.resume import versions
from higgsc.train.sequence import AudioTokens, label_counts
from higgsc.train.shelf import prune_checkpoints
from higgsc.train.validate import validation_losses

logger = logging.getLogger(__name__)

BETWEEN_VOTES = {"cpu": 1, "cuda": 4}
"""Steps, or rows of a validation, between two votes on whether to stop. On a GPU a vote waits for all queued work."""


class _AskedToStopError(Exception):
    """All processes agreed to stop."""


class Training:
    """One training, from the beginning or from a checkpoint."""

    def __init__(
        self, job: TrainJob, context: StepContext, mesh: Mesh, store: Store, *, total: int, store_sha256: str
    ) -> None:
        self._job, self._context, self._mesh, self._store = job, context, mesh, store
        self._total, self._store_sha256 = total, store_sha256
        _check_base(job, store)
        self._plan = BatchPlan.of(job.batch, store.train, seed=job.seed, world_size=mesh.world_size)
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

        self._guard = FiniteGuard(mesh)
        self._since_log, self._since_checkpoint = LossMeter(mesh), LossMeter(mesh)
        self._window_tokens = self._window_samples = 0
        self._window_start = self._started = time.monotonic()
        self._norm = torch.zeros((), device=mesh.device)
        self._done = 0
        self._saved = self._reported = 0  # the newest steps that were saved, and whose figures were written

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint, whose hashes have been checked."""
        progress = read_progress(checkpoint)
        restore(
            checkpoint,
            model=self._model,
            parameters=self._adapter,
            optimizer=self._optimizer,
            mesh=self._mesh,
            step=progress.step,
        )
        self._since_log.load(progress.since_log)
        self._since_checkpoint.load(progress.since_checkpoint)
        self._window_tokens, self._window_samples = progress.window_tokens, progress.window_samples
        self._window_start = time.monotonic() - progress.window_seconds
        self._started = time.monotonic() - progress.seconds
        self._norm.fill_(progress.grad_norm)
        self._done = self._saved = progress.step
        # A training that is interrupted saves before it writes the figures of its last step.
        self._reported = progress.step - 1 if read_checkpoint(checkpoint).interrupted else progress.step

    def run(self) -> Interrupted | None:
        """Train to the end, or until asked to stop, which may also be after the last step, before it is validated."""
        mesh, run, start = self._mesh, self._context.path(self._job.run), self._done
        heartbeat = HeartbeatWriter(run, "train", unit="steps", total=self._total, enabled=mesh.is_first)
        heartbeat.beat(start, force=True)
        message = ""
        with MetricsWriter(run, self._total, start=self._reported, enabled=mesh.is_first) as metrics:
            try:
                while True:
                    due = self._done > self._reported and self._is_due(self._done)
                    if due or self._done == start or self._done % BETWEEN_VOTES[mesh.device.type] == 0:
                        self._stop_if_asked()
                    if due:
                        message = self._report(metrics)
                    if self._done == self._total:
                        break
                    self._optimizer_step(self._done)
                    if self._done == start:
                        mesh.expect_steps()
                    self._done += 1
                    metrics.advance(self._done)
                    heartbeat.beat(self._done, message, force=self._done == self._total)
            except _AskedToStopError:
                if self._done > self._saved:
                    self._stop_if_not_finite()
                    self._save({}, interrupted=True)
                heartbeat.beat(self._done, "stopped, as asked", force=True)
                return Interrupted(done=self._saved, total=self._total, unit="steps")
        return None

    def _is_due(self, done: int) -> bool:
        return done % self._job.log_every_steps == 0 or self._is_checkpoint(done)

    def _is_checkpoint(self, done: int) -> bool:
        return done % self._job.checkpoint.every_steps == 0 or done == self._total

    def _stop_if_asked(self) -> None:
        if self._mesh.any(asked_to_stop(self._context.path(self._job.run))):
            raise _AskedToStopError

    def _report(self, metrics: MetricsWriter) -> str:
        """Write the figures of the steps up to here, and save where it is time; returns the main ones as a text.

        Asked to stop during the validation, nothing has changed yet: what was begun here is begun again.
        """
        job, done = self._job, self._done
        self._stop_if_not_finite()
        values = self._since_log.means(job.loss)
        seconds = time.monotonic() - self._window_start
        values |= {
            "learning_rate": learning_rate(done - 1, job.optimizer, total=self._total),
            "grad_norm": float(self._norm),
            "epoch": done * job.batch.global_samples / len(self._store.train),
            "tokens_per_second": self._window_tokens / seconds,
            "samples_per_second": self._window_samples / seconds,
        }
        saving = self._is_checkpoint(done)
        figures: dict[str, float] = {}
        if saving:
            validation = self._validate()
            figures = self._since_checkpoint.means(job.loss) | validation
            values |= validation
        # Written before the checkpoint: one that is there has its line.
        message = metrics.write(done, values, durable=saving)
        self._since_log.reset()
        self._window_start, self._window_tokens, self._window_samples = time.monotonic(), 0, 0
        self._reported = done
        if saving:
            self._since_checkpoint.reset()
            self._save(figures, interrupted=False)
        return message

    def _optimizer_step(self, step: int) -> None:
        """Do optimizer step `step` (0-based)."""
        job, mesh = self._job, self._mesh
        seed_dropout(job.seed, mesh.rank, step)
        samples = self._plan.global_batch(step)
        audio_labels, text_labels = (int(n.sum()) for n in label_counts(self._store.target_frames[samples]))
        losses = []
        rows = self._plan.micro_batches(step, mesh.rank)
        for number, row in enumerate(rows, start=1):
            batch = assemble(self._store, row, self._tokens)
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
        self._window_tokens += int(self._store.lengths[samples].sum())
        self._window_samples += len(samples)

        mesh.reduce_gradients(self._parameters)
        self._norm = clip_gradients(self._parameters, job.optimizer.max_grad_norm)
        self._guard.watch(step + 1, self._norm, *losses)
        set_learning_rate(self._optimizer, learning_rate(step, job.optimizer, total=self._total))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _validate(self) -> dict[str, float]:
        """The losses of the held-out samples; empty where there are none."""
        if not len(self._store.validation):
            return {}

        def before_row(number: int) -> None:
            if number % BETWEEN_VOTES[self._mesh.device.type] == 0:
                self._stop_if_asked()

        losses = validation_losses(
            self._module,
            self._store,
            self._store.validation,
            mesh=self._mesh,
            micro_samples=self._job.batch.micro_samples,
            autocast=self._autocast,
            before_row=before_row,
        )
        # The step's own loss and gradient were finite, but its update may still have broken the adapter.
        if not (math.isfinite(losses.audio) and math.isfinite(losses.text)):
            raise self._not_finite("the validation loss", self._done)
        return {VALIDATION_METRIC: losses.audio, "validation/text_loss": losses.text}

    def _save(self, figures: dict[str, float], *, interrupted: bool) -> None:
        """Save a checkpoint of the steps done so far, and delete those it replaces."""
        job, mesh, done = self._job, self._mesh, self._done
        weights = {name: mesh.whole(parameter) for name, parameter in self._adapter.items()}
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise self._not_finite("the adapter", done)
        now = time.monotonic()
        progress = Progress(
            step=done,
            seconds=now - self._started,
            store_sha256=self._store_sha256,
            versions=versions(),
            grad_norm=float(self._norm),
            since_log=self._since_log.save(),
            since_checkpoint=self._since_checkpoint.save(),
            window_tokens=self._window_tokens,
            window_samples=self._window_samples,
            window_seconds=now - self._window_start,
        )
        write_more = writer(job, progress, moments(self._optimizer, self._adapter, mesh))

        def write() -> int:
            folder = self._context.path(job.checkpoints)
            saved = save_checkpoint(
                folder,
                done,
                model=self._model,
                weights=weights,
                ref=job.model,
                metrics=figures,
                interrupted=interrupted,
                write_more=write_more,
            )
            write_state(self._context.path(job.run), job.step, "running", done, self._total)
            removed = ", ".join(old.path.name for old in prune_checkpoints(folder, job.checkpoint.keep_last))
            logger.info("saved %s%s", saved.name, f", removed {removed}" if removed else "")
            return done

        self._saved = mesh.on_first(write)

    def _stop_if_not_finite(self) -> None:
        bad = self._guard.first_bad_step()
        if bad is not None:
            raise self._not_finite("the loss or a gradient", bad)

    def _not_finite(self, what: str, step: int) -> StepError:
        return StepError(
            f"{what} is not finite at step {step} of {self._total}; nothing was saved from there on",
            help="lower `training.learning_rate`, lengthen the warm-up, or train in fp32",
        )


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
