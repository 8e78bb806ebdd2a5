"""Checkpoints: what was trained, the figures it was saved with, what training goes on from, and hashes.

    checkpoints/step-500/
      adapter/adapter_model.safetensors   what `peft.PeftModel.from_pretrained` loads
      adapter/adapter_config.json         (of a whole model: transformers' files instead, see `whole.py`)
      adapter/whisper.safetensors         only where a Whisper listens: its projector, see `model/projector.py`
      metrics.json                        {"step", "metrics", "interrupted"}
      manifest.json                       size and SHA-256 of every other file
      optimizer.safetensors, progress.json, job.json: see `progress.py`

A folder gets its name when it is complete and on disk, so a folder called `step-N` is a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from peft import PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from higgsc.contract.jobs import BestMetric, ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file
from higgsc.train.model.adapter import PROJECTOR, PROJECTOR_FILE, WEIGHTS_FILE
from higgsc.train.model.projector import divided, listener_of

MANIFEST = "manifest.json"
MANIFEST_SCHEMA: Final = "higgsc.checkpoint/v1"
VALIDATION_METRIC = "validation/audio_loss"
TRAINING_METRIC = "loss/audio"
_IN_TRAINING = {VALIDATION_METRIC: TRAINING_METRIC, "validation/text_loss": "loss/text"}
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
    """Empty for one that was saved because the training was asked to stop: there was no time to validate."""
    interrupted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, as its metrics describe it; its hashes are not checked yet."""

    path: Path
    step: int
    metrics: Mapping[str, float]
    interrupted: bool

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
    interrupted: bool = False,
    write_more: Callable[[Path], object] = lambda draft: None,
) -> Path:
    """Write `step-<step>`; it replaces one of that name.

    Args:
        folder: Where the checkpoints lie.
        step: Optimizer steps done.
        model: Says what the adapter is; its own parameters may be sharded.
        weights: The adapter's parameters in full, on the CPU, by their names in `model`.
        ref: The base, named in `adapter_config.json`.
        metrics: Finite figures to keep with it.
        interrupted: Whether it is saved only to go on from; the next regular one takes its place.
        write_more: Writes further files into the folder it is given.

    Returns:
        The checkpoint's folder.

    Raises:
        StepError: If the disk is full or not writable (74). Earlier checkpoints are as they were.
    """
    with draft_checkpoint(folder, step, metrics=metrics, interrupted=interrupted) as (draft, _):
        adapter = draft / "adapter"
        adapter.mkdir()
        low_rank, projector = divided(weights)
        state = get_peft_model_state_dict(model, state_dict=low_rank, save_embedding_layers=False)
        assert len(state) == len(low_rank), "every trained parameter is part of the adapter"
        write_tensors(adapter / WEIGHTS_FILE, state)
        if projector:
            (weight,) = projector.values()
            write_tensors(adapter / PROJECTOR_FILE, {PROJECTOR: weight})
        _write_adapter_config(adapter, model, ref)
        write_more(draft)
    return checkpoint_path(folder, step)


@contextmanager
def draft_checkpoint(
    folder: Path, step: int, *, metrics: Mapping[str, float], interrupted: bool
) -> Iterator[tuple[Path, dict[str, FileStamp]]]:
    """A folder that becomes `step-<step>` when the block ends well, with metrics and manifest; it replaces one of
    that name.

    Yields:
        The folder to write to; and stamps, to which files may be added whose hash is known already.

    Raises:
        StepError: If the disk is full or not writable (74). Earlier checkpoints are as they were.
    """
    known: dict[str, FileStamp] = {}
    with publish_folder(checkpoint_path(folder, step), marker=MANIFEST) as draft:
        yield draft, known
        saved = SavedMetrics(step=step, metrics=dict(sorted(metrics.items())), interrupted=interrupted)
        (draft / "metrics.json").write_text(saved.model_dump_json(indent=2) + "\n", "utf-8")
        paths = {path.relative_to(draft).as_posix(): path for path in sorted(draft.rglob("*")) if path.is_file()}
        files = {
            name: known.get(name) or FileStamp(size=path.stat().st_size, sha256=sha256_file(path))
            for name, path in paths.items()
        }
        (draft / MANIFEST).write_text(Manifest(files=files).model_dump_json(indent=2) + "\n", "utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, the same bytes for the same tensors.

    Raises:
        OSError: If the disk refuses; safetensors itself hides the reason in a text.
    """
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, path, metadata={"format": "pt"}
        )
    except SafetensorError as error:
        reason = re.search(r"os error ([0-9]+)", str(error))
        if reason is None:
            raise
        number = int(reason[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step}"


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint on disk.

    Raises:
        StepError: If its metrics cannot be read.
    """
    return Checkpoint(path=path, **dict(read_model(SavedMetrics, path / "metrics.json")))


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a folder, oldest first; empty if it does not exist.

    Raises:
        StepError: If the metrics of one cannot be read.
    """
    found = [read_checkpoint(path) for path in folder.glob("step-*") if is_checkpoint(path)]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(checkpoints: list[Checkpoint], by: BestMetric) -> Checkpoint:
    """The one with the lowest figure of that name, or of the same loss in training where none was validated.

    The earliest wins a draw. A checkpoint without the figure, such as an interrupted one, cannot be the best.
    """
    metric: str = by
    if by in _IN_TRAINING and not any(by in checkpoint.metrics for checkpoint in checkpoints):
        metric = _IN_TRAINING[by]
    return min(checkpoints, key=lambda checkpoint: checkpoint.metrics.get(metric, float("inf")))


def select_checkpoint(folder: Path, select: Literal["best", "last"], *, by: BestMetric) -> Checkpoint:
    """The best by that figure or the newest checkpoint, with its hashes checked.

    Raises:
        StepError: If there is none (66), or if the selected one is damaged (65).
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise StepError(
            "there is no checkpoint here", code=ExitCode.MISSING_INPUT, path=folder, help="run the train step first"
        )
    selected = best_checkpoint(checkpoints, by) if select == "best" else checkpoints[-1]
    verify_checkpoint(selected.path)
    return selected


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        StepError: The first of `file_problems`.
    """
    problem = next(file_problems(path), None)
    if problem is not None:
        raise problem


def file_problems(path: Path, *, hashes: bool = True) -> Iterator[StepError]:
    """What is wrong with a checkpoint's files by its manifest: each that is missing, cannot be read or differs.

    Args:
        path: The checkpoint's folder.
        hashes: Whether to read the files; without, only their sizes are compared.
    """
    try:
        manifest = read_model(Manifest, path / MANIFEST)
    except StepError as problem:
        yield problem
        return
    for name, stamp in manifest.files.items():
        file = path / name
        try:
            if not file.is_file():
                yield damaged(file, "is missing")
            elif (size := file.stat().st_size) != stamp.size:
                yield damaged(file, f"has {size} bytes instead of {stamp.size}")
            elif hashes and sha256_file(file) != stamp.sha256:
                yield damaged(file, "does not have the hash that the manifest names")
        except OSError as error:
            yield damaged(file, f"cannot be read: {error.strerror}")


def unknown_files(path: Path) -> list[Path]:
    """Files in a checkpoint's folder that its manifest does not name.

    Raises:
        StepError: If the manifest cannot be read.
    """
    known = {path / name for name in read_model(Manifest, path / MANIFEST).files} | {path / MANIFEST}
    return sorted(file for file in path.rglob("*") if not file.is_dir() and file not in known)


def _write_adapter_config(adapter: Path, model: PeftModel, ref: ModelRef) -> None:
    config = model.peft_config["default"].to_dict()
    config.update(
        base_model_name_or_path=ref.base,
        revision=ref.revision,
        inference_mode=True,
        # PEFT holds the targets as a set; sorted, the file is the same in every run.
        target_modules=sorted(config["target_modules"]),
    )
    if (listener := listener_of(model)) is not None:
        config["whisper"] = listener.model_dump()
    # Keys in order, but not those within: of patterns, the first that matches counts.
    text = json.dumps(dict(sorted(config.items())), indent=2, default=sorted)
    (adapter / "adapter_config.json").write_text(text + "\n", "utf-8")


def read_model(model: type[ModelT], path: Path) -> ModelT:
    """A JSON file of a checkpoint.

    Raises:
        StepError: It is not there, or not what it should be (65).
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise damaged(path, "does not hold what it should") from error


def damaged(path: Path, what: str) -> StepError:
    """The error that names a damaged file of a checkpoint."""
    return StepError(
        f"damaged checkpoint: this file {what}",
        path=path,
        help="remove the checkpoint's folder to go on without it, or train again",
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint by its name, `step-N`."""
    return _FOLDER.fullmatch(path.name) is not None and path.is_dir()
