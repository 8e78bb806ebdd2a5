"""One training: the model, its optimizer, and the loop over optimizer steps."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.contract.stop import asked_to_save, asked_to_stop, forget_save
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.checkpoints.checkpoint import read_checkpoint
from higgsc.train.checkpoints.progress import Progress, read_progress, restore, seed_dropout
from higgsc.train.checkpoints.resume import versions
from higgsc.train.checkpoints.saving import AdapterSaver, Saver
from higgsc.train.checkpoints.whole import WholeSaver
from higgsc.train.decoder.attention import announce as announce_attention
from higgsc.train.faults.guard import FiniteGuard, NotFiniteError, record_skipped
from higgsc.train.faults.rehearsal import REHEARSES, rehearse
from higgsc.train.faults.rollback import Rollbacks
from higgsc.train.faults.watchdog import Watchdog
from higgsc.train.gradients import Comparison, Gradients
from higgsc.train.model.build import adapter_parameters, add_lora, check_trainable, load_base, train_whole
from higgsc.train.model.layers import expect_compiler, run_layers
from higgsc.train.model.projector import add_projector, listener_for
from higgsc.train.model.quantize import announce, check_device, quantize_base
from higgsc.train.model.start import start_from
from higgsc.train.objective.loss import LossModule, LossSums
from higgsc.train.objective.validate import validation_losses
from higgsc.train.optimizer import adamw, learning_rate, set_learning_rate
from higgsc.train.parallel.contact import step_timeout
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.report.metrics import LossMeter
from higgsc.train.report.reporter import Reporter
from higgsc.train.report.speed import Speed
from higgsc.train.rows.ahead import Ahead
from higgsc.train.rows.curriculum import weights_at
from higgsc.train.rows.inputs import Counts, Inputs
from higgsc.train.rows.plan import Plan
from higgsc.train.rows.sequence import AudioTokens
from higgsc.train.speech.samples import Samples

logger = logging.getLogger(__name__)

BETWEEN_VOTES = {"cpu": 1, "cuda": 4}
"""Steps, or rows of a validation, between two votes on whether to stop. On a GPU a vote waits for all queued work."""


_SAVE, _STOP = 1, 2
"""What processes vote for; the highest wins."""


class _AskedToStopError(Exception):
    """All processes agreed to stop."""


class Training:
    """One training, from the beginning or from a checkpoint."""

    def __init__(
        self,
        job: TrainJob,
        context: StepContext,
        mesh: Mesh,
        store: Store,
        plan: Plan,
        *,
        total: int,
        store_sha256: str,
        checkpoint: Path | None,
    ) -> None:
        """Load the base, and put the adapter on it if there is one.

        Args:
            checkpoint: What training goes on from, its hashes checked; None at the beginning.
        """
        self._job, self._context, self._mesh, self._store = job, context, mesh, store
        self._total, self._store_sha256 = total, store_sha256
        self._folder = context.path(job.run)
        _check_base(job, store)
        self._plan = plan
        if job.compile:
            expect_compiler(mesh.device)
        check_device(job.quantize, mesh.device)
        compute = torch.bfloat16 if job.precision == "bf16" else torch.float32
        # What is trained is float32. Adapters are computed with in the base's number format by autocast; the parameters
        # of a whole model by FSDP2, which gathers them in it.
        self._autocast = torch.bfloat16 if job.precision == "bf16" and job.lora is not None else None
        stored = torch.float32 if job.lora is None else compute
        base = load_base(job.model, root=context.root, dtype=stored, device=mesh.device)
        check_trainable(job.model, base)
        self._model: nn.Module
        if job.lora is None:
            assert job.quantize is None, "what is trained whole is not rounded"
            self._model = train_whole(base, job.model)
        else:
            self._model = adapted = add_lora(base, job.lora, job.seed)
            if job.model.whisper is not None:
                add_projector(base, listener_for(store, job.model))
            if checkpoint is None and job.lora.start is not None:
                start_from(context.path(job.lora.start), adapted, job.model)
            if job.quantize is not None:
                quantize_base(base, job.quantize)
                announce(job.quantize, mesh.device)
        announce_attention(mesh.device, compute, shared=plan.shared is not None)
        self._module = LossModule(self._model, Comparison(job.loss.contrastive, mesh)).train()
        mesh.divide(self._module)
        run_layers(self._module.causal.model, job)
        mesh.distribute(self._module, compute if stored != compute else None)
        # Taken once: after a forward pass, FSDP2 may show a module's gathered parameters instead of its shards.
        self._adapter = adapter_parameters(self._model)
        self._optimizer = adamw(list(self._adapter.values()), job.optimizer)
        self._gradients = Gradients(
            job,
            mesh,
            module=self._module,
            parameters=self._adapter,
            autocast=self._autocast,
        )
        self._inputs = Inputs(
            job, store, plan, tokens=AudioTokens.of(base.config), rank=mesh.data_rank, device=mesh.device
        )

        self._samples = Samples(job, context, mesh, self._module, store, autocast=self._autocast)
        self._guard = FiniteGuard(mesh, rows=job.batch.accumulation)
        self._rollbacks = Rollbacks(context.path(job.checkpoints), self._folder, mesh, total=total)
        self._dog = Watchdog(self._folder / "logs", mesh.rank, step_timeout().total_seconds())
        saved: dict[str, Any] = {"parameters": self._adapter, "optimizer": self._optimizer, "total": total}
        self._saver: Saver
        if isinstance(self._model, PeftModel):
            self._saver = AdapterSaver(job, context, mesh, model=self._model, **saved)
        else:
            self._saver = WholeSaver(job, context, mesh, alive=self._dog.heard, **saved)
        self._since_log, self._since_checkpoint = LossMeter(mesh), LossMeter(mesh)
        self._speed = Speed(job, mesh, store)
        self._started = time.monotonic()
        self._norm = torch.zeros((), device=mesh.device)
        self._done = 0
        self._saved = self._reported = 0  # the newest steps that were saved, and whose figures were written
        if checkpoint is not None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
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
        self._speed.load(progress.window)
        self._started = time.monotonic() - progress.seconds
        self._norm.fill_(progress.grad_norm)
        self._done = self._saved = progress.step
        # A training that is interrupted saves before it writes the figures of its last step.
        self._reported = progress.step - 1 if read_checkpoint(checkpoint).interrupted else progress.step

    def run(self) -> Interrupted | None:
        """Train to the end, or until asked to stop, which may also be after the last step, before it is validated."""
        self._saver.check_room()
        if (rows := self._plan.describe()) is not None:
            logger.info("%s", rows)
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
                self._restore(checkpoint)
                self._rollbacks.load(steps, left_out)
                self._started = started

    def _run(self) -> Interrupted | None:
        mesh, start = self._mesh, self._done
        self._ahead = Ahead(self._inputs, self._total + self._rollbacks.left_out)
        with (
            Reporter(
                self._job, self._folder, total=self._total, start=start, reported=self._reported, enabled=mesh.is_first
            ) as reporter,
            self._saver,  # ends before the figures do, which a checkpoint counts on
            self._ahead,
        ):
            try:
                if start == 0 and self._samples.due_at_start():
                    self._samples.speak(0, reporter.speech, self._between)
                while True:
                    due = self._done > self._reported and self._is_due(self._done)
                    if due or self._done == start or self._done % BETWEEN_VOTES[mesh.device.type] == 0:
                        self._vote(reporter)
                        self._count_skipped(wait=due)
                    if due:
                        self._report(reporter)
                    if self._done == self._total:
                        self._saver.finish()
                        break
                    self._optimizer_step(self._done)
                    if self._done == start:
                        mesh.expect_steps()
                    self._dog.heard()
                    self._done += 1
                    reporter.advance(self._done)
            except _AskedToStopError:
                if self._done > self._saved:
                    self._count_skipped(wait=True)
                    self._save({}, reporter, interrupted=True)
                self._saver.finish()
                reporter.stopped(self._done)
                return Interrupted(done=self._saved, total=self._total, unit="steps")
        return None

    def _is_due(self, done: int) -> bool:
        return done % self._job.log_every_steps == 0 or self._is_checkpoint(done)

    def _is_checkpoint(self, done: int) -> bool:
        return done % self._job.checkpoint.every_steps == 0 or done == self._total

    def _vote(self, reporter: Reporter) -> None:
        """Stop if any process was asked to, and save if the first was asked to save. Every process has to come here.

        Raises:
            _AskedToStopError: To end here.
            StepError: If the last checkpoint could not be written (74, if the disk was at fault).
        """
        stop = asked_to_stop(self._folder) or self._saver.failed
        save = self._mesh.is_first and asked_to_save(self._folder)
        highest = -int(self._mesh.minimum(torch.tensor(-(_STOP * stop + _SAVE * save), device=self._mesh.device)))
        if highest >= _STOP:
            self._stop()
        if highest == _SAVE:
            if self._done > self._saved and not self._is_checkpoint(self._done):
                self._count_skipped(wait=True)
                # Nothing is validated for it; like one that a stop leaves, it goes when the next regular one is there.
                self._save({}, reporter, interrupted=True)
            if self._mesh.is_first:
                forget_save(self._folder)

    def _stop(self) -> None:
        if self._mesh.any(self._saver.failed):
            self._saver.finish()
        raise _AskedToStopError

    def _between(self) -> None:
        """Between two pieces of what may take long: the processes are alive, and may be asked to end here."""
        self._dog.heard()
        if self._mesh.any(asked_to_stop(self._folder) or self._saver.failed):
            self._stop()

    def _report(self, reporter: Reporter) -> None:
        """Say the figures of the steps up to here, and save where it is time.

        Asked to stop during the validation, nothing has changed yet: what was begun here is begun again.
        """
        job, done = self._job, self._done
        values = self._since_log.means()
        values |= {
            "learning_rate": learning_rate(done - 1, job.optimizer, total=self._total),
            "grad_norm": float(self._norm),
            "skipped_steps": len(self._guard.skipped),
            "epoch": self._plan.epochs(self._batch_of(done)),
            **self._speed.figures(),
        }
        saving = self._is_checkpoint(done)
        figures: dict[str, float] = {}
        if saving:
            validation = self._validate()
            figures = self._since_checkpoint.means() | validation
            values |= validation
            self._samples.speak(done, reporter.speech, self._between)
        reporter.figures(done, values)
        self._since_log.reset()
        self._speed.reset()
        self._reported = done
        if saving:
            self._since_checkpoint.reset()
            self._save(figures, reporter, interrupted=False)

    def _batch_of(self, step: int) -> int:
        """The batch that optimizer step `step` (both 0-based) trains on; a rollback leaves some out."""
        return step + self._rollbacks.left_out

    def _optimizer_step(self, step: int) -> None:
        """Do optimizer step `step` (0-based)."""
        job, mesh, number = self._job, self._mesh, self._batch_of(step)
        seed_dropout(job.seed, mesh.data_rank, number)
        taken, weights = self._ahead.step(number), weights_at(job.loss, step)
        counts = taken.counts
        losses, sums, norm = self._gradients.compute(self._ahead.rows(), len(taken.rows), weights, counts)

        bad = self._guard.watch(step + 1, norm, losses)
        self._norm = torch.where(bad > 0, self._norm, norm)
        for meter in (self._since_log, self._since_checkpoint):
            for row in sums:
                counted = LossSums(*(torch.where(bad > 0, 0.0, part.detach()) for part in row))
                meter.add_sums(counted, weights)
            meter.add_labels(*counts)
        self._speed.add(taken.samples, taken.spared)
        set_learning_rate(self._optimizer, learning_rate(step, job.optimizer, total=self._total))
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]  # then it changes nothing
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _rehearse(self) -> None:
        """Meet the longest row of the run now."""
        samples = self._plan.longest_row(self._total + self._rollbacks.left_out)
        row = self._inputs.row(samples)
        # Of many micro-batches, two show what all do: the second runs beside the gradients of the first.
        rows = [row] * min(2, self._job.batch.accumulation)
        rehearse(
            samples,
            positions=row.batch.tokens,
            job=self._job,
            store=self._store,
            parameters=list(self._adapter.values()),
            optimizer=self._optimizer,
            gradients=lambda: self._gradients.compute(rows, len(rows), self._job.loss, Counts(1, 1, 1)),
        )

    def _count_skipped(self, *, wait: bool) -> None:
        """Take steps that were skipped out of the figures, note their samples, and go back if they are too many."""
        new = self._guard.news(self._done, wait=wait)
        for step in new:
            number = self._batch_of(step - 1)
            batch = self._plan.global_batch(number)
            counts = self._inputs.counts(batch)
            for meter in (self._since_log, self._since_checkpoint):
                meter.add_labels(*(-count for count in counts))
            rows = [self._plan.micro_batches(number, rank) for rank in range(self._mesh.data_size)]
            samples = self._guard.samples(step, rows)
            if self._mesh.is_first:
                self._rollbacks.suspect(record_skipped(self._folder, step, samples, batch, self._store))
        self._guard.judge(new)
        if self._done == self._total:
            self._guard.judge_end(self._total)

    def _validate(self) -> dict[str, float]:
        """The losses of the held-out samples; empty where there are none."""
        if not len(self._store.validation):
            return {}

        def before_row(number: int) -> None:
            if number % BETWEEN_VOTES[self._mesh.device.type] == 0:
                self._between()

        losses = validation_losses(
            self._module,
            self._store,
            self._plan.others(self._store.validation),
            mesh=self._mesh,
            autocast=self._autocast,
            before_row=before_row,
        )
        # The step's own loss and gradient were finite, but its update may still have broken the adapter.
        if not (math.isfinite(losses.audio) and math.isfinite(losses.text)):
            raise NotFiniteError("the validation loss", self._done)
        return losses.figures(self._job.loss)

    def _save(self, figures: dict[str, float], reporter: Reporter, *, interrupted: bool) -> None:
        """Have a checkpoint of the steps done so far written, and those deleted that it replaces."""
        progress = Progress(
            step=self._done,
            seconds=time.monotonic() - self._started,
            store_sha256=self._store_sha256,
            versions=versions(),
            skipped=tuple(self._guard.skipped),
            rollbacks=self._rollbacks.steps,
            left_out=self._rollbacks.left_out,
            grad_norm=float(self._norm),
            since_log=self._since_log.save(),
            since_checkpoint=self._since_checkpoint.save(),
            window=self._speed.save(),
        )
        # A checkpoint that is there has its line of figures.
        self._saver.save(progress, figures, before=reporter.flush, interrupted=interrupted)
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
