"""Checkpoints: an adapter in PEFT's format, the figures it was saved with, and hashes of both.

    checkpoints/step-500/
      adapter/adapter_model.safetensors   what `peft.PeftModel.from_pretrained` loads
      adapter/adapter_config.json
      metrics.json                        {"step", "metrics"}
      manifest.json                       size and SHA-256 of each of the files above

A folder gets its name when it is complete and on disk, so a folder called `step-N` is a whole checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from higgsc.contract.jobs import ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file

MANIFEST = "manifest.json"
MANIFEST_SCHEMA: Final = "higgsc.checkpoint/v1"
VALIDATION_METRIC = "validation/audio_loss"
TRAINING_METRIC = "loss/audio"
_FOLDER = re.compile(r"step-[0-9]+")
ModelT = TypeVar("ModelT", bound=BaseModel)


class FileStamp(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds: every other file of the checkpoint, by its path within."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_schema: Literal["higgsc.checkpoint/v1"] = MANIFEST_SCHEMA
    files: dict[str, FileStamp]


class SavedMetrics(BaseModel):
    """What `metrics.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, as its metrics describe it; its hashes are not checked yet."""

    path: Path
    step: int
    metrics: Mapping[str, float]

    @property
    def adapter(self) -> Path:
        """Folder in PEFT's format."""
        return self.path / "adapter"


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: PeftModel,
    weights: Mapping[str, Tensor],
    ref: ModelRef,
    metrics: Mapping[str, float],
) -> Path:
    """Write `step-<step>`; it replaces one of that name.

    Args:
        folder: Where the checkpoints lie.
        step: Optimizer steps done.
        model: Says what the adapter is; its own parameters may be sharded.
        weights: The adapter's parameters in full, on the CPU, by their names in `model`.
        ref: The base, named in `adapter_config.json`.
        metrics: Finite figures to keep with it.

    Returns:
        The checkpoint's folder.
    """
    target = folder / f"step-{step}"
    with publish_folder(target, marker=MANIFEST) as draft:
        adapter = draft / "adapter"
        adapter.mkdir()
        state = get_peft_model_state_dict(model, state_dict=dict(weights), save_embedding_layers=False)
        assert len(state) == len(weights), "every trained parameter is part of the adapter"
        save_file(
            {name: tensor.contiguous() for name, tensor in sorted(state.items())},
            adapter / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        _write_adapter_config(adapter, model, ref)
        saved = SavedMetrics(step=step, metrics=dict(sorted(metrics.items())))
        (draft / "metrics.json").write_text(saved.model_dump_json(indent=2) + "\n", "utf-8")
        files = {
            path.relative_to(draft).as_posix(): FileStamp(size=path.stat().st_size, sha256=sha256_file(path))
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
        (draft / MANIFEST).write_text(Manifest(files=files).model_dump_json(indent=2) + "\n", "utf-8")
    return target


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a folder, oldest first; empty if it does not exist.

    Raises:
        StepError: If the metrics of one cannot be read.
    """
    found = []
    for path in folder.glob("step-*"):
        if _is_checkpoint(path):
            saved = _read(SavedMetrics, path / "metrics.json")
            found.append(Checkpoint(path=path, step=saved.step, metrics=saved.metrics))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the lowest validation audio loss, or training audio loss where none was validated.

    The earliest wins a draw. A checkpoint without the figure cannot be the best.
    """
    validated = any(VALIDATION_METRIC in checkpoint.metrics for checkpoint in checkpoints)
    metric = VALIDATION_METRIC if validated else TRAINING_METRIC
    return min(checkpoints, key=lambda checkpoint: checkpoint.metrics.get(metric, float("inf")))


def select_checkpoint(folder: Path, select: Literal["best", "last"]) -> Checkpoint:
    """The best or the newest checkpoint, with its hashes checked.

    Raises:
        StepError: If there is none (66), or if the selected one is damaged (65).
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise StepError(
            "there is no checkpoint here", code=ExitCode.MISSING_INPUT, path=folder, help="run the train step first"
        )
    selected = best_checkpoint(checkpoints) if select == "best" else checkpoints[-1]
    verify_checkpoint(selected.path)
    return selected


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        StepError: If a file is missing or differs, naming it.
    """
    manifest = _read(Manifest, path / MANIFEST)
    for name, stamp in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise _damaged(file, "is missing")
        if file.stat().st_size != stamp.size:
            raise _damaged(file, f"has {file.stat().st_size} bytes instead of {stamp.size}")
        if sha256_file(file) != stamp.sha256:
            raise _damaged(file, "does not have the hash that the manifest names")


def prune_checkpoints(folder: Path, keep_last: int) -> list[Checkpoint]:
    """Delete all but the newest `keep_last` checkpoints and the best one.

    Returns:
        The deleted ones.
    """
    checkpoints = list_checkpoints(folder)
    if len(checkpoints) <= keep_last:
        return []
    best = best_checkpoint(checkpoints)
    old = [checkpoint for checkpoint in checkpoints[:-keep_last] if checkpoint is not best]
    for checkpoint in old:
        _remove(checkpoint.path)
    return old


def clear_checkpoints(folder: Path) -> list[str]:
    """Delete the checkpoints of an earlier attempt, and what it may have left half-done.

    Returns:
        Names of the deleted checkpoints.
    """
    names = [checkpoint.name for checkpoint in folder.glob("step-*") if _is_checkpoint(checkpoint)]
    for name in names:
        _remove(folder / name)
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)
    return sorted(names)


def _write_adapter_config(adapter: Path, model: PeftModel, ref: ModelRef) -> None:
    config = model.peft_config["default"].to_dict()
    config.update(
        base_model_name_or_path=ref.base,
        revision=ref.revision,
        inference_mode=True,
        # PEFT holds the targets as a set; sorted, the file is the same in every run.
        target_modules=sorted(config["target_modules"]),
    )
    text = json.dumps(config, indent=2, sort_keys=True, default=sorted)
    (adapter / "adapter_config.json").write_text(text + "\n", "utf-8")


def _read(model: type[ModelT], path: Path) -> ModelT:
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise _damaged(path, "does not hold what it should") from error


def _damaged(path: Path, what: str) -> StepError:
    return StepError(
        f"damaged checkpoint: this file {what}",
        path=path,
        help="remove the checkpoint's folder to go on without it, or train again",
    )


def _is_checkpoint(path: Path) -> bool:
    return _FOLDER.fullmatch(path.name) is not None and path.is_dir()


def _remove(path: Path) -> None:
    """Delete a checkpoint's folder; renamed first, so that a half-deleted one never looks whole."""
    doomed = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)
