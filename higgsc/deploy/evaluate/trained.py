"""Which models are compared with their base: an adapter on it and the merge of both, or a checkpoint of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from higgsc.contract.evaluation import Kind
from higgsc.contract.jobs import EvaluateJob, StepContext
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import sha256_file
from higgsc.deploy.adapted import merged_from
from higgsc.deploy.base import stored_dtype
from higgsc.deploy.fit import check_fit
from higgsc.deploy.merge.fold import REPORT_FILE as MERGE_FILE
from higgsc.deploy.selection import find_checkpoint
from higgsc.deploy.weights import open_weights
from higgsc.train.checkpoints.checkpoint import (
    MANIFEST,
    Checkpoint,
    is_checkpoint,
    list_checkpoints,
    select_checkpoint,
    verify_checkpoint,
)
from higgsc.train.checkpoints.progress import read_job
from higgsc.train.model.adapter import WEIGHTS_FILE, open_adapter
from higgsc.train.model.adapter_config import CONFIG_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model on disk."""

    kind: Kind
    """Any but the base."""
    folder: Path
    """Of a model in transformers' format, or of an adapter in PEFT's."""
    proof: Path
    """The file that changes when the model does."""

    def check(self, base: Path) -> None:
        """Refuse what does not belong together while that costs nothing: from configurations and headers.

        Raises:
            StepError: It is damaged, or an adapter of another model (65); or it is not there (66).
        """
        if self.kind == "adapter":
            check_fit(open_adapter(self.folder), open_weights(base))
        else:
            stored_dtype(self.folder)

    def layout_folder(self, base: Path) -> Path:
        """Where its tokenizer and chat template are."""
        return base if self.kind == "adapter" else self.folder

    def dtype(self, base: Path) -> torch.dtype:
        """The number format that it is stored in; of an adapter, that of its base."""
        return stored_dtype(self.layout_folder(base))


def of_job(job: EvaluateJob, context: StepContext) -> tuple[Trained, ...]:
    """What the evaluate step of a plan is about.

    Raises:
        StepError: The step before has not been run (66), its checkpoint is damaged, or the merged model is that of
            another checkpoint (65).
    """
    assert job.trained is not None, "a plan's job names a checkpoint"
    chosen = job.trained
    merged = None if job.merged is None else context.path(job.merged)
    if merged is not None:
        stored_dtype(merged)  # or else it is missing
    checkpoint = select_checkpoint(context.path(chosen.checkpoints), chosen.select, by=chosen.best)
    if merged is None:
        return (_of_checkpoint(checkpoint),)
    return (_of_checkpoint(checkpoint), _merged_of(checkpoint.adapter, merged))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a path stands for."""

    trained: tuple[Trained, ...]
    """In the order to compare them in."""
    run: Path | None
    """Folder of the run that it belongs to, if it is known."""
    job: dict[str, Any]
    """The job of its training, as a checkpoint remembers it; empty without one."""
    missing: str | None = None
    """What would have belonged to the comparison and is not there."""


def find_trained(path: Path, select: str | None, merged: Path | None) -> Found:
    """The models that a path stands for.

    Args:
        path: Folder of a run, of one of its checkpoints, of a merged or whole model, or of an adapter. A run stands for
            its merged model and the adapter in that; or, if it has none, for its best checkpoint.
        select: Of a run: `best`, `last` or `step-N`, and the run's merged model if it was made from that.
        merged: The merge of the adapter, for the comparison.

    Raises:
        StepError: There is no such thing (66), the checkpoint is damaged (65), there is nothing to select, or `merged`
            is not a merge of the adapter (2).
    """
    if merged is not None and not merged.is_dir():
        raise StepError("no such folder", code=ExitCode.MISSING_INPUT, path=merged)
    path, merged = path.resolve(), None if merged is None else merged.resolve()
    of_run = bool(list_checkpoints(path / "checkpoints"))
    beside = path / "merged" if merged is None and of_run else merged
    if of_run and select is None and beside is not None and (beside / MERGE_FILE).is_file():
        adapter = _adapter_in(beside, path / "checkpoints")
        if adapter is not None:
            return _found((adapter, _merged(beside)), path)
        gone = f"the adapter in {beside} is in none of the run's checkpoints any more"
        if merged is not None:
            raise StepError(gone, code=ExitCode.USAGE, path=path, help="name the adapter's own folder")
        return _found((_merged(beside),), path, missing=f"{gone}; it is not compared")
    one, run = _one(path, select)
    if one.kind != "adapter":
        if merged is not None:
            raise StepError(
                "--merged is for adapters, and this is a model itself",
                code=ExitCode.USAGE,
                path=one.folder,
                help="name the adapter, or its run or checkpoint, and the merged model with --merged",
            )
        return _found((one,), run)
    if merged is not None:
        return _found((one, _merged_of(one.folder, merged)), run)
    if beside is not None and (beside / MERGE_FILE).is_file() and _is_merge_of(one.folder, beside):
        return _found((one, _merged(beside)), run)
    return _found((one,), run)


def _one(path: Path, select: str | None) -> tuple[Trained, Path | None]:
    """What a path itself is, and the folder that would be its run's."""
    if (path / CONFIG_FILE).is_file() and is_checkpoint(path.parent):
        path = path.parent
    if (checkpoint := find_checkpoint(path, select)) is not None:
        return _of_checkpoint(checkpoint), checkpoint.path.parent.parent
    if (path / CONFIG_FILE).is_file():
        return Trained(kind="adapter", folder=path, proof=path / CONFIG_FILE), None
    if (path / "config.json").is_file():
        return _merged(path), path.parent
    raise StepError(
        "neither a run with checkpoints nor a model: there is no config.json and no adapter_config.json",
        code=ExitCode.MISSING_INPUT,
        path=path,
        help="name a run's folder, a checkpoint, or the folder of a merged model",
    )


def _adapter_in(merged: Path, checkpoints: Path) -> Trained | None:
    """The checkpoint whose adapter is in a merged model, its hashes checked."""
    for checkpoint in reversed(list_checkpoints(checkpoints)):
        if (checkpoint.adapter / WEIGHTS_FILE).is_file() and _is_merge_of(checkpoint.adapter, merged):
            verify_checkpoint(checkpoint.path)
            return _of_checkpoint(checkpoint)
    return None


def _is_merge_of(adapter: Path, merged: Path) -> bool:
    return merged_from(merged) == sha256_file(adapter / WEIGHTS_FILE)


def _merged_of(adapter: Path, folder: Path) -> Trained:
    """A merged model; one that says that it was made from another adapter is refused."""
    if merged_from(folder) is not None and not _is_merge_of(adapter, folder):
        raise StepError(
            f"the merged model was made from another adapter than {adapter}",
            code=ExitCode.USAGE,
            path=folder / MERGE_FILE,
            help="merge this adapter: run the merge step again, or `higgsc merge`",
        )
    merged = _merged(folder)
    return Trained(kind="merged", folder=folder, proof=merged.proof)


def _merged(folder: Path) -> Trained:
    if (folder / MERGE_FILE).is_file():
        return Trained(kind="merged", folder=folder, proof=folder / MERGE_FILE)
    return Trained(kind="model", folder=folder, proof=folder / "config.json")


def _of_checkpoint(checkpoint: Checkpoint) -> Trained:
    whole = not (checkpoint.adapter / CONFIG_FILE).is_file()
    folder = checkpoint.path if whole else checkpoint.adapter
    return Trained(kind="whole" if whole else "adapter", folder=folder, proof=checkpoint.path / MANIFEST)


def _found(trained: tuple[Trained, ...], run: Path | None, *, missing: str | None = None) -> Found:
    """With the training's job, if this is a run."""
    checkpoints = list_checkpoints(run / "checkpoints") if run is not None else []
    if not checkpoints:
        return Found(trained=trained, run=None, job={}, missing=missing)
    return Found(trained=trained, run=run, job=read_job(checkpoints[-1].path), missing=missing)
