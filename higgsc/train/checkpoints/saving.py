"""Saving a training: the processes put together what each holds, and the first one writes it.

An adapter is copied and written in the background; a whole model while the steps wait (`whole.py`).
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import free_space
from higgsc.contract.state import write_state
from higgsc.train.checkpoints.checkpoint import list_checkpoints, save_checkpoint
from higgsc.train.checkpoints.progress import MOMENTS, Progress, writer
from higgsc.train.checkpoints.shelf import prune_checkpoints
from higgsc.train.checkpoints.writer import BackgroundWriter, HostCopy
from higgsc.train.faults.guard import NotFiniteError
from higgsc.train.parallel.mesh import Mesh

logger = logging.getLogger(__name__)


class Saver(ABC):
    """Saves checkpoints; as a context manager, waits for the last one to be written.

    Args:
        job: The job.
        context: Where it runs.
        mesh: The processes; everything here is done by all of them.
        parameters: The trained ones, by their names in the model; perhaps sharded.
        optimizer: Their AdamW.
        total: Optimizer steps of the training.
    """

    def __init__(
        self,
        job: TrainJob,
        context: StepContext,
        mesh: Mesh,
        *,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        total: int,
    ) -> None:
        self._job, self._context, self._mesh, self._total = job, context, mesh, total
        self._parameters, self._optimizer = parameters, optimizer
        self._writer = BackgroundWriter()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of a checkpoint's tensors."""

    @abstractmethod
    def _begin(
        self,
        progress: Progress,
        figures: Mapping[str, float],
        before: Callable[[], object],
        *,
        interrupted: bool,
        began: float,
    ) -> None:
        """Begin to save; see `save`. Every process comes here.

        Args:
            began: When the steps began to wait, by the monotonic clock.
        """

    def check_room(self) -> None:
        """See to it now that there is room for a checkpoint, not when the first one is due.

        Raises:
            StepError: If there is none (74).
        """
        self._mesh.on_first(self._check_room)

    def _check_room(self) -> int:
        folder, keep = self._context.path(self._job.checkpoints), self._job.checkpoint.keep_last
        size, free = self.size, free_space(folder)
        if free < size:
            raise StepError(
                f"a checkpoint takes {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there",
                code=ExitCode.IO,
                path=folder,
                help="make room, or name another `output`",
            )
        # One more than are kept is there for a moment, beside the best one.
        wanted = size * (keep + 2 - len(list_checkpoints(folder)))
        if free < wanted:
            logger.warning(
                "%s: %.1f MB are free, but keeping the last %d checkpoints and the best one takes %.1f MB more",
                folder, free / 1e6, keep, wanted / 1e6,
            )  # fmt: skip
        return 0

    @property
    def failed(self) -> bool:
        """Whether this process could not write a checkpoint; `finish` says why."""
        return self._writer.failed

    def finish(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            StepError: If the disk is full or not writable (74).
        """
        self._mesh.on_first(self._finish)

    def _finish(self) -> int:
        self._writer.finish()
        return 0

    def save(
        self, progress: Progress, figures: Mapping[str, float], *, before: Callable[[], object], interrupted: bool
    ) -> None:
        """Begin to save a checkpoint, when the one before is on disk.

        Args:
            progress: How far the training is.
            figures: To keep with it.
            before: Done by the first process before it writes, in the background too.
            interrupted: Whether it is saved only to go on from.

        Raises:
            NotFiniteError: If the weights hold numbers that are not finite; nothing is saved then.
            StepError: If the one before could not be written.
        """
        began = time.monotonic()
        self.finish()
        finite = [self._mesh.local(parameter.detach()).isfinite().all() for parameter in self._parameters.values()]
        if self._mesh.any(not bool(torch.stack(finite).all())):
            raise NotFiniteError("the adapter" if self._job.lora is not None else "the model", progress.step)
        self._begin(progress, figures, before, interrupted=interrupted, began=began)

    def _saved(self, checkpoint: Path, progress: Progress, waited: float) -> None:
        """On the first process, when a checkpoint is on disk."""
        job = self._job
        write_state(self._context.path(job.run), job.step, "running", progress.step, self._total)
        folder = self._context.path(job.checkpoints)
        removed = ", ".join(old.path.name for old in prune_checkpoints(folder, job.checkpoint))
        logger.info(
            "saved %s%s; the steps waited %.3f s", checkpoint.name, f", removed {removed}" if removed else "", waited
        )


class AdapterSaver(Saver):
    """Saves an adapter, from copies in memory that is taken before the first step.

    Args:
        model: Says what PEFT calls the parameters in its file.
        others: As for every saver.
    """

    def __init__(self, job: TrainJob, context: StepContext, mesh: Mesh, *, model: PeftModel, **others: Any) -> None:
        super().__init__(job, context, mesh, **others)
        self._model, self._host = model, HostCopy(mesh.device)
        if mesh.is_first:
            for name, parameter in self._parameters.items():
                whole = torch.empty(mesh.shape(name, parameter), dtype=parameter.dtype, device="meta")
                for buffer in (name, *(f"{moment}.{name}" for moment in MOMENTS)):
                    self._host.reserve(buffer, whole)

    @property
    def size(self) -> int:
        return self._host.size

    def _begin(
        self,
        progress: Progress,
        figures: Mapping[str, float],
        before: Callable[[], object],
        *,
        interrupted: bool,
        began: float,
    ) -> None:
        weights, moments = self._copies()

        def write() -> None:
            job, folder = self._job, self._context.path(self._job.checkpoints)
            self._host.wait()
            before()
            saved = save_checkpoint(
                folder,
                progress.step,
                model=self._model,
                weights=weights,
                ref=job.model,
                metrics=figures,
                interrupted=interrupted,
                write_more=writer(job, progress, moments),
            )
            self._saved(saved, progress, waited)

        waited = time.monotonic() - began
        if self._mesh.is_first:
            self._writer.start(write)

    def _copies(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The adapter and AdamW's moments in full, in buffers of the first process."""
        weights, moments = {}, {}
        for name, parameter in self._parameters.items():
            whole = self._mesh.whole(name, parameter)
            if self._mesh.is_first:  # the others only take part in putting it together
                weights[name] = self._host.copy(name, whole)
            for moment in MOMENTS:
                whole = self._mesh.whole(name, self._optimizer.state[parameter][moment])
                if self._mesh.is_first:
                    moments[f"{moment}.{name}"] = self._host.copy(f"{moment}.{name}", whole)
        self._host.begun()
        return weights, moments
