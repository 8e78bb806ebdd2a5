"""Which model is compared with its base: a merged one, a checkpoint of the whole model, or an adapter on the base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from higgsc.contract.jobs import EvaluateJob, ModelRef, StepContext
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.adapted import put_on
from higgsc.deploy.base import folder_ref, stored_dtype
from higgsc.deploy.merge.fold import REPORT_FILE as MERGE_FILE
from higgsc.deploy.selection import find_checkpoint
from higgsc.train.checkpoints.checkpoint import (
    MANIFEST,
    Checkpoint,
    list_checkpoints,
    select_checkpoint,
)
from higgsc.train.checkpoints.progress import read_job
from higgsc.train.model.adapter import CONFIG_FILE
from higgsc.train.model.build import load_base
from higgsc.train.model.folder import base_folder

Kind = Literal["merged", "adapter", "whole", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model on disk."""

    kind: Kind
    folder: Path
    """Of a model in transformers' format, or of an adapter in PEFT's."""
    proof: Path
    """The file that changes when the model does."""

    def load(self, base: ModelRef, *, root: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The model in evaluation mode; an adapter stays unmerged, as it was trained.

        Raises:
            StepError: See `load_base` and `put_on`.
        """
        if self.kind != "adapter":
            return load_base(folder_ref(self.folder), root=root, dtype=dtype, device=device)
        model = load_base(base, root=root, dtype=dtype, device=device)
        return put_on(model, self.folder, base=base_folder(base.base, base.revision, root=root))

    def layout_folder(self, base: Path) -> Path:
        """Where its tokenizer and chat template are."""
        return base if self.kind == "adapter" else self.folder

    def dtype(self, base: Path) -> torch.dtype:
        """The number format that it is stored in; of an adapter, that of its base."""
        return stored_dtype(self.layout_folder(base))


def of_job(job: EvaluateJob, context: StepContext) -> Trained:
    """What the evaluate step of a plan is about.

    Raises:
        StepError: The step before has not been run (66), or its checkpoint is damaged (65).
    """
    if job.trained is not None:
        chosen = job.trained
        checkpoint = select_checkpoint(context.path(chosen.checkpoints), chosen.select, by=chosen.best).path
        return Trained(kind="whole", folder=checkpoint, proof=checkpoint / MANIFEST)
    assert job.merged is not None, "a job names a merged model or a checkpoint"
    folder = context.path(job.merged)
    return Trained(kind="merged", folder=folder, proof=folder / MERGE_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a path stands for."""

    trained: Trained
    run: Path | None
    """Folder of the run that it belongs to, if it is known."""
    job: dict[str, Any]
    """The job of its training, as a checkpoint remembers it; empty without one."""


def find_trained(path: Path, select: str | None) -> Found:
    """The model that a path stands for.

    Args:
        path: Folder of a run, of one of its checkpoints, of a merged or whole model, or of an adapter.
        select: Of a run: `best`, `last` or `step-N`; None takes its merged model, or else the best checkpoint.

    Raises:
        StepError: There is no such thing (66), the checkpoint is damaged (65), or there is nothing to select (2).
    """
    path = path.resolve()
    if select is None and (path / "merged" / MERGE_FILE).is_file() and list_checkpoints(path / "checkpoints"):
        return _found(_merged(path / "merged"), path)
    if (checkpoint := find_checkpoint(path, select)) is not None:
        return _found(_of_checkpoint(checkpoint), checkpoint.path.parent.parent)
    if (path / CONFIG_FILE).is_file():
        return _found(Trained(kind="adapter", folder=path, proof=path / CONFIG_FILE), None)
    if (path / "config.json").is_file():
        return _found(_merged(path), path.parent)
    raise StepError(
        "neither a run with checkpoints nor a model: there is no config.json and no adapter_config.json",
        code=ExitCode.MISSING_INPUT,
        path=path,
        help="name a run's folder, a checkpoint, or the folder of a merged model",
    )


def _merged(folder: Path) -> Trained:
    if (folder / MERGE_FILE).is_file():
        return Trained(kind="merged", folder=folder, proof=folder / MERGE_FILE)
    return Trained(kind="model", folder=folder, proof=folder / "config.json")


def _of_checkpoint(checkpoint: Checkpoint) -> Trained:
    whole = read_job(checkpoint.path).get("lora") is None
    folder = checkpoint.path if whole else checkpoint.adapter
    return Trained(kind="whole" if whole else "adapter", folder=folder, proof=checkpoint.path / MANIFEST)


def _found(trained: Trained, run: Path | None) -> Found:
    """With the training's job, if this is a run."""
    checkpoints = list_checkpoints(run / "checkpoints") if run is not None else []
    if not checkpoints:
        return Found(trained=trained, run=None, job={})
    return Found(trained=trained, run=run, job=read_job(checkpoints[-1].path))
