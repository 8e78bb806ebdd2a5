"""What to merge: from a run, a checkpoint or an adapter's folder to an adapter, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.store import STORE_FILE
from higgsc.deploy.selection import find_checkpoint
from higgsc.train.checkpoints.checkpoint import Checkpoint
from higgsc.train.checkpoints.progress import read_job, read_progress
from higgsc.train.model.adapter_config import CONFIG_FILE


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter to merge."""

    adapter: Path
    """Folder in PEFT's format."""
    facts: Mapping[str, str]
    """Where it comes from, for the model card."""
    store: Path | None = None
    """The speech that it was trained on, if that is still there."""


def find_source(path: Path, select: str | None) -> Source:
    """The adapter that a path stands for.

    Args:
        path: Folder of an adapter, of a checkpoint, or of a run.
        select: Of a run: `best`, `last` or `step-N`; None for the best.

    Raises:
        StepError: There is no such thing (66), the checkpoint is damaged (65), or there is nothing to select (2).
    """
    checkpoint = find_checkpoint(path, select)
    if checkpoint is not None:
        return of_checkpoint(checkpoint)
    if (path / CONFIG_FILE).is_file():
        return Source(path, {})
    raise StepError(
        f"neither a run with checkpoints nor an adapter: there is no {CONFIG_FILE}",
        code=ExitCode.MISSING_INPUT,
        path=path,
        help="an adapter folder holds adapter_config.json and adapter_model.safetensors",
    )


def of_checkpoint(checkpoint: Checkpoint) -> Source:
    """The adapter of a checkpoint whose hashes have been checked, with what its files say of the training."""
    job, progress = read_job(checkpoint.path), read_progress(checkpoint.path)
    lora: dict[str, Any] | None = job["lora"]
    if lora is None:
        return Source(checkpoint.path, {})  # a whole model, which `open_adapter` refuses in its own words
    patterns = f" with {len(lora['rank_pattern'])} exceptions" if lora.get("rank_pattern") else ""
    facts = {
        "run": f"{job['run']}, {checkpoint.path.name}",
        "adapter": f"LoRA of rank {lora['rank']}{patterns}, alpha {lora['alpha']:g}, "
        f"{lora['trainable_parameters']:,} parameters",
        "trained on": f"{job['store']} (SHA-256 of its record: {progress.store_sha256})",
    }
    if checkpoint.metrics:
        facts["figures"] = ", ".join(f"{name} {value:.4g}" for name, value in sorted(checkpoint.metrics.items()))
    return Source(checkpoint.adapter, facts, _store(checkpoint, job))


def _store(checkpoint: Checkpoint, job: Mapping[str, Any]) -> Path | None:
    """The store is named from the project root, and so is the checkpoints' folder: from there the root follows."""
    root, below = checkpoint.path.resolve().parent, Path(str(job.get("checkpoints", "")))
    for part in reversed(below.parts):
        if root.name != part:
            return None  # the run was moved
        root = root.parent
    store = root / str(job["store"])
    return store if (store / STORE_FILE).is_file() else None
