"""One training: the model, its optimizer, and the loop over optimizer steps."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import Interrupted, StepError
from higgsc.contract.state import write_state
from higgsc.contract.stop import asked_to_save, asked_to_stop, forget_save
from higgsc.data.store import STORE_FILE, Store
from higgsc.train.batches import BatchPlan, pack
from higgsc.train.checkpoint import read_checkpoint, save_checkpoint
from higgsc.train.contrastive import Voices, count_anchors, info_nce, pooled, voices
from higgsc.train.curriculum import weights_at
from higgsc.train.layers import expect_compiler, run_layers
from higgsc.train.loss import LossModule, objective
from higgsc.train.mesh import Mesh
from higgsc.train.metrics import FiniteGuard, LossMeter
from higgsc.train.model import adapter_parameters, add_lora, load_base
from higgsc.train.optimizer import adamw, learning_rate, set_learning_rate
from higgsc.train.progress import Progress, moments, read_progress, restore, seed_dropout, writer
from higgsc.train.reporter import Reporter
from higgsc.train.resume import versions
from higgsc.train.samples import Samples
from higgsc.train.sequence import AudioTokens, build_sequence, label_counts
from higgsc.train.shelf import prune_checkpoints
from higgsc.train.speed import Speed
from higgsc.train.start import start_from
from higgsc.train.validate import validation_losses

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
        *,
        total: int,
        store_sha256: str,
        checkpoint: Path | None,
    ) -> None:
        """Load the base and put the adapter on it.

        Args:
            checkpoint: What training goes on from, its hashes checked; None at the beginning.
        """
        self._job, self._context, self._mesh, self._store = job, context, mesh, store
        self._total, self._store_sha256 = total, store_sha256
        self._run = context.path(job.run)
        _check_base(job, store)
        longer = np.maximum(store.reference_frames, store.target_frames)[store.train]
        lengths = None if job.curriculum is None else (job.curriculum, longer)
        self._plan = BatchPlan.of(job.batch, store.train, seed=job.seed, world_size=mesh.data_size, lengths=lengths)
        if job.compile:
            expect_compiler(mesh.device)
        bf16 = job.precision == "bf16"
        base = load_base(
            job.model, root=context.root, dtype=torch.bfloat16 if bf16 else torch.float32, device=mesh.device
        )
        self._tokens = AudioTokens.of(base.config)
        self._model: PeftModel = add_lora(base, job.lora, job.seed)
        if checkpoint is None and job.lora.start is not None:
            start_from(context.path(job.lora.start), self._model, job.model)
        # Adapters are float32; autocast computes with them in the base's number format.
        self._autocast = torch.bfloat16 if bf16 else None
        self._module = LossModule(self._model, self._compare).train()
        mesh.divide(self._module)
        run_layers(self._module.causal.model.layers, job)
        mesh.distribute(self._module)
        # Taken once: after a forward pass, FSDP2 may show a module's gathered parameters instead of its shards.
        self._adapter = adapter_parameters(self._model)
        self._optimizer = adamw(list(self._adapter.values()), job.optimizer)

        self._samples = Samples(job, context, mesh, self._module, store, autocast=self._autocast)
        self._guard = FiniteGuard(mesh)
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
            step=progress.step,
        )
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
        mesh, start = self._mesh, self._done
        with Reporter(
            self._job, self._run, total=self._total, start=start, reported=self._reported, enabled=mesh.is_first
        ) as reporter:
            try:
                if start == 0 and self._samples.due_at_start():
                    self._samples.speak(0, reporter.speech, self._stop_if_asked)
                while True:
                    due = self._done > self._reported and self._is_due(self._done)
                    if due or self._done == start or self._done % BETWEEN_VOTES[mesh.device.type] == 0:
                        self._vote()
                    if due:
                        self._report(reporter)
                    if self._done == self._total:
                        break
                    self._optimizer_step(self._done)
                    if self._done == start:
                        mesh.expect_steps()
                    self._done += 1
                    reporter.advance(self._done)
            except _AskedToStopError:
                if self._done > self._saved:
                    self._stop_if_not_finite()
                    self._save({}, interrupted=True)
                reporter.stopped(self._done)
                return Interrupted(done=self._saved, total=self._total, unit="steps")
        return None

    def _is_due(self, done: int) -> bool:
        return done % self._job.log_every_steps == 0 or self._is_checkpoint(done)

    def _is_checkpoint(self, done: int) -> bool:
        return done % self._job.checkpoint.every_steps == 0 or done == self._total

    def _stop_if_asked(self) -> None:
        if self._mesh.any(asked_to_stop(self._run)):
            raise _AskedToStopError

    def _vote(self) -> None:
        """Stop if any process was asked to, and save if the first was asked to save. Every process has to come here."""
        stop = asked_to_stop(self._run)
        save = self._mesh.is_first and asked_to_save(self._run)
        highest = -int(self._mesh.minimum(torch.tensor(-(_STOP * stop + _SAVE * save), device=self._mesh.device)))
        if highest >= _STOP:
            raise _AskedToStopError
        if highest == _SAVE:
            if self._done > self._saved and not self._is_checkpoint(self._done):
                self._stop_if_not_finite()
                # Nothing is validated for it; like one that a stop leaves, it goes when the next regular one is there.
                self._save({}, interrupted=True)
            if self._mesh.is_first:
                forget_save(self._run)

    def _report(self, reporter: Reporter) -> None:
        """Say the figures of the steps up to here, and save where it is time.

        Asked to stop during the validation, nothing has changed yet: what was begun here is begun again.
        """
        job, done = self._job, self._done
        self._stop_if_not_finite()
        values = self._since_log.means()
        values |= {
            "learning_rate": learning_rate(done - 1, job.optimizer, total=self._total),
            "grad_norm": float(self._norm),
            "epoch": done * job.batch.global_samples / len(self._store.train),
            **self._speed.figures(),
        }
        saving = self._is_checkpoint(done)
        figures: dict[str, float] = {}
        if saving:
            validation = self._validate()
            figures = self._since_checkpoint.means() | validation
            values |= validation
            self._samples.speak(done, reporter.speech, self._stop_if_asked)
        # Written before the checkpoint: one that is there has its line.
        reporter.figures(done, values, durable=saving)
        self._since_log.reset()
        self._speed.reset()
        self._reported = done
        if saving:
            self._since_checkpoint.reset()
            self._save(figures, interrupted=False)

    def _optimizer_step(self, step: int) -> None:
        """Do optimizer step `step` (0-based)."""
        job, mesh = self._job, self._mesh
        seed_dropout(job.seed, mesh.data_rank, step)
        samples = self._plan.global_batch(step)
        audio_labels, text_labels = (int(n.sum()) for n in label_counts(self._store.target_frames[samples]))
        weights, anchors = weights_at(job.loss, step), 0
        if job.loss.contrastive is not None:
            anchors = count_anchors(self._store.speaker_numbers[samples.reshape(job.batch.accumulation, -1)])
        losses = []
        rows = self._plan.micro_batches(step, mesh.data_rank)
        for number, row in enumerate(rows, start=1):
            stored = [self._store.sample(int(index)) for index in row]
            batch = pack([build_sequence(sample, self._tokens) for sample in stored])
            compared = None
            if job.loss.contrastive is not None:
                compared = voices(stored, self._store.speaker_numbers[row]).to(mesh.device)
            mesh.accumulate(self._module, last=number == len(rows))
            with torch.autocast(mesh.device.type, self._autocast, enabled=self._autocast is not None):
                sums = self._module(batch.to(mesh.device), compared)
            loss = objective(sums, weights, audio_labels=audio_labels, text_labels=text_labels, anchors=anchors)
            mesh.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            for meter in (self._since_log, self._since_checkpoint):
                meter.add_sums(sums, weights)
        for meter in (self._since_log, self._since_checkpoint):
            meter.add_labels(audio_labels, text_labels, anchors)
        self._speed.add(samples)

        mesh.reduce_gradients(self._adapter)
        self._norm = mesh.clip_gradients(self._adapter, job.optimizer.max_grad_norm)
        self._guard.watch(step + 1, self._norm, *losses)
        set_learning_rate(self._optimizer, learning_rate(step, job.optimizer, total=self._total))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _compare(self, hidden: Tensor, where: Voices) -> Tensor:
        """The contrastive loss of a row, summed over its samples."""
        assert self._job.loss.contrastive is not None, "a row comes with its voices only where they are compared"
        mesh = self._mesh
        return info_nce(
            *pooled(hidden, where),
            where.speakers,
            temperature=self._job.loss.contrastive.temperature,
            gather=mesh.gather_rows,
            first=mesh.data_rank * len(where.speakers),
        )

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
        return losses.figures(self._job.loss)

    def _save(self, figures: dict[str, float], *, interrupted: bool) -> None:
        """Save a checkpoint of the steps done so far, and delete those it replaces."""
        job, mesh, done = self._job, self._mesh, self._done
        weights = {name: mesh.whole(name, parameter) for name, parameter in self._adapter.items()}
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise self._not_finite("the adapter", done)
        progress = Progress(
            step=done,
            seconds=time.monotonic() - self._started,
            store_sha256=self._store_sha256,
            versions=versions(),
            grad_norm=float(self._norm),
            since_log=self._since_log.save(),
            since_checkpoint=self._since_checkpoint.save(),
            window=self._speed.save(),
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
            write_state(self._run, job.step, "running", done, self._total)
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
