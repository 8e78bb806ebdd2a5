"""One training: the model, its optimizer, and the loop over optimizer steps."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.contract.stop import asked_to_stop
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.batches import BatchPlan, Indices, pack
from higgsc.train.checkpoint import VALIDATION_METRIC, read_checkpoint
from higgsc.train.guard import FiniteGuard, NotFiniteError, record_skipped
from higgsc.train.loss import LossModule, LossSums, objective
from higgsc.train.mesh import Mesh, step_timeout
from higgsc.train.metrics import LossMeter, MetricsWriter
from higgsc.train.model import adapter_parameters, add_lora, load_base
from higgsc.train.optimizer import adamw, clip_gradients, learning_rate, set_learning_rate
from higgsc.train.progress import Progress, read_progress, restore, seed_dropout
from higgsc.train.rehearsal import REHEARSES, longest_row, rehearse
from higgsc.train.resume import versions
from higgsc.train.rollback import Rollbacks
from higgsc.train.saving import Saver
from higgsc.train.sequence import AudioTokens, build_sequence, label_counts
from higgsc.train.validate import validation_losses
from higgsc.train.watchdog import Watchdog

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

        self._guard = FiniteGuard(mesh, rows=job.batch.accumulation)
        self._rollbacks = Rollbacks(context.path(job.checkpoints), context.path(job.run), mesh, total=total)
        self._saver = Saver(
            job,
            context,
            mesh,
            model=self._model,
            parameters=self._adapter,
            optimizer=self._optimizer,
            total=total,
        )
        self._dog = Watchdog(context.path(job.run) / "logs", mesh.rank, step_timeout().total_seconds())
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
            updates=progress.step - len(progress.skipped),
        )
        self._guard.load(progress.skipped, progress.step)
        self._rollbacks.load(progress.rollbacks, progress.left_out)
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
        self._saver.check_room()
        if self._mesh.device.type in REHEARSES and self._done < self._total:
            self._rehearse()
        with self._dog:
            return self._run_or_go_back()

    def _run_or_go_back(self) -> Interrupted | None:
        while True:
            try:
                return self._run()
            except NotFiniteError as error:
                self._saver.finish()
                checkpoint = self._rollbacks.roll_back(error, skipped=self._guard.skipped)
                steps, left_out, started = self._rollbacks.steps, self._rollbacks.left_out, self._started
                self.restore(checkpoint)
                self._rollbacks.load(steps, left_out)
                self._started = started

    def _run(self) -> Interrupted | None:
        mesh, run, start = self._mesh, self._context.path(self._job.run), self._done
        heartbeat = HeartbeatWriter(run, "train", unit="steps", total=self._total, enabled=mesh.is_first)
        heartbeat.beat(start, force=True)
        message = ""
        with (
            MetricsWriter(run, self._total, start=self._reported, enabled=mesh.is_first) as metrics,
            self._saver,  # ends before the figures do, which a checkpoint counts on
        ):
            try:
                while True:
                    due = self._done > self._reported and self._is_due(self._done)
                    if due or self._done == start or self._done % BETWEEN_VOTES[mesh.device.type] == 0:
                        self._stop_if_asked()
                        self._count_skipped(wait=due)
                    if due:
                        message = self._report(metrics)
                    if self._done == self._total:
                        self._saver.finish()
                        break
                    self._optimizer_step(self._done)
                    if self._done == start:
                        mesh.expect_steps()
                    self._dog.heard()
                    self._done += 1
                    metrics.advance(self._done)
                    heartbeat.beat(self._done, message, force=self._done == self._total)
            except _AskedToStopError:
                if self._done > self._saved:
                    self._count_skipped(wait=True)
                    self._save({}, metrics, interrupted=True)
                self._saver.finish()
                heartbeat.beat(self._done, "stopped, as asked", force=True)
                return Interrupted(done=self._saved, total=self._total, unit="steps")
        return None

    def _is_due(self, done: int) -> bool:
        return done % self._job.log_every_steps == 0 or self._is_checkpoint(done)

    def _is_checkpoint(self, done: int) -> bool:
        return done % self._job.checkpoint.every_steps == 0 or done == self._total

    def _stop_if_asked(self) -> None:
        """End here, on all processes, if one of them was asked to, or if the last checkpoint could not be written.

        Raises:
            _AskedToStopError: In the first case.
            StepError: In the second (74, if the disk was at fault).
        """
        asked = asked_to_stop(self._context.path(self._job.run))
        if not self._mesh.any(asked or self._saver.failed):
            return
        if self._mesh.any(self._saver.failed):
            self._saver.finish()
        raise _AskedToStopError

    def _report(self, metrics: MetricsWriter) -> str:
        """Write the figures of the steps up to here, and save where it is time; returns the main ones as a text.

        Asked to stop during the validation, nothing has changed yet: what was begun here is begun again.
        """
        job, done = self._job, self._done
        values = self._since_log.means(job.loss)
        seconds = time.monotonic() - self._window_start
        values |= {
            "learning_rate": learning_rate(done - 1, job.optimizer, total=self._total),
            "grad_norm": float(self._norm),
            "skipped_steps": len(self._guard.skipped),
            "epoch": self._batch_of(done) * job.batch.global_samples / len(self._store.train),
            "tokens_per_second": self._window_tokens / seconds,
            "samples_per_second": self._window_samples / seconds,
        }
        saving = self._is_checkpoint(done)
        figures: dict[str, float] = {}
        if saving:
            validation = self._validate()
            figures = self._since_checkpoint.means(job.loss) | validation
            values |= validation
        message = metrics.write(done, values)
        self._since_log.reset()
        self._window_start, self._window_tokens, self._window_samples = time.monotonic(), 0, 0
        self._reported = done
        if saving:
            self._since_checkpoint.reset()
            self._save(figures, metrics, interrupted=False)
        return message

    def _batch_of(self, step: int) -> int:
        """The batch that optimizer step `step` (both 0-based) trains on; a rollback leaves some out."""
        return step + self._rollbacks.left_out

    def _optimizer_step(self, step: int) -> None:
        """Do optimizer step `step` (0-based)."""
        job, mesh, number = self._job, self._mesh, self._batch_of(step)
        seed_dropout(job.seed, mesh.rank, number)
        samples = self._plan.global_batch(number)
        audio_labels, text_labels = self._labels(samples)
        rows = self._plan.micro_batches(number, mesh.rank)
        losses, sums, norm = self._gradients(rows, audio_labels=audio_labels, text_labels=text_labels)

        bad = self._guard.watch(step + 1, norm, losses)
        self._norm = torch.where(bad > 0, self._norm, norm)
        for meter in (self._since_log, self._since_checkpoint):
            for row_sums in sums:
                meter.add_sums(LossSums(*(torch.where(bad > 0, 0.0, part.detach()) for part in row_sums)))
            meter.add_labels(audio_labels, text_labels)
        self._window_tokens += int(self._store.lengths[samples].sum())
        self._window_samples += len(samples)
        set_learning_rate(self._optimizer, learning_rate(step, job.optimizer, total=self._total))
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]  # then it changes nothing
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _gradients(
        self, rows: Indices, *, audio_labels: int, text_labels: int
    ) -> tuple[list[Tensor], list[LossSums], Tensor]:
        """Compute and clip the gradients of this process's rows `[rows, samples]` of a step.

        Returns:
            Their shares of the objective, their cross-entropy, and the gradient's norm over all processes.
        """
        job, mesh = self._job, self._mesh
        losses, sums = [], []
        for last, row in enumerate(rows, start=1 - len(rows)):
            batch = pack([build_sequence(self._store.sample(int(index)), self._tokens) for index in row])
            mesh.accumulate(self._module, last=last == 0)
            with torch.autocast(mesh.device.type, self._autocast, enabled=self._autocast is not None):
                sums.append(self._module(batch.to(mesh.device)))
            loss = objective(sums[-1], job.loss, audio_labels=audio_labels, text_labels=text_labels)
            mesh.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        mesh.reduce_gradients(self._parameters)
        return losses, sums, clip_gradients(self._parameters, job.optimizer.max_grad_norm)

    def _rehearse(self) -> None:
        """Meet the longest row of the run now."""
        row = longest_row(self._plan, self._store.lengths, self._total + self._rollbacks.left_out)
        rehearse(
            row,
            job=self._job,
            store=self._store,
            parameters=self._parameters,
            optimizer=self._optimizer,
            gradients=lambda rows: self._gradients(rows, audio_labels=1, text_labels=1),
        )

    def _labels(self, samples: Indices) -> tuple[int, int]:
        """Labelled codes and text tokens of samples."""
        audio, text = (int(n.sum()) for n in label_counts(self._store.target_frames[samples]))
        return audio, text

    def _count_skipped(self, *, wait: bool) -> None:
        """Take steps that were skipped out of the figures, note their samples, and go back if they are too many."""
        new = self._guard.news(self._done, wait=wait)
        for step in new:
            number = self._batch_of(step - 1)
            batch = self._plan.global_batch(number)
            audio, text = self._labels(batch)
            for meter in (self._since_log, self._since_checkpoint):
                meter.add_labels(-audio, -text)
            samples = self._guard.samples(step, self._plan.micro_batches(number, self._mesh.rank))
            if self._mesh.is_first:
                run = self._context.path(self._job.run)
                self._rollbacks.suspect(record_skipped(run, step, samples, batch, self._store))
        self._guard.judge(new)

    def _validate(self) -> dict[str, float]:
        """The losses of the held-out samples; empty where there are none."""
        if not len(self._store.validation):
            return {}

        def before_row(number: int) -> None:
            self._dog.heard()
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
            raise NotFiniteError("the validation loss", self._done)
        return {VALIDATION_METRIC: losses.audio, "validation/text_loss": losses.text}

    def _save(self, figures: dict[str, float], metrics: MetricsWriter, *, interrupted: bool) -> None:
        """Have a checkpoint of the steps done so far written, and those deleted that it replaces."""
        now = time.monotonic()
        progress = Progress(
            step=self._done,
            seconds=now - self._started,
            store_sha256=self._store_sha256,
            versions=versions(),
            skipped=tuple(self._guard.skipped),
            rollbacks=self._rollbacks.steps,
            left_out=self._rollbacks.left_out,
            grad_norm=float(self._norm),
            since_log=self._since_log.save(),
            since_checkpoint=self._since_checkpoint.save(),
            window_tokens=self._window_tokens,
            window_samples=self._window_samples,
            window_seconds=now - self._window_start,
        )
        # A checkpoint that is there has its line of figures.
        self._saver.save(progress, figures, before=metrics.flush, interrupted=interrupted)
        self._saved = self._done


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
