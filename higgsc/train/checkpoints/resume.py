"""Whether and from where a training goes on: the newest whole checkpoint, if what has changed since allows it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from higgsc import __version__
from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.checkpoints.progress import read_job, read_progress
from higgsc.train.checkpoints.shelf import find_newest_whole, recover_checkpoints

logger = logging.getLogger(__name__)

BREAKS_RESUME: Final[Mapping[str, str]] = {
    "model": "the adapter belongs to its base",
    "lora.rank": "the adapter's shapes change",
    "lora.alpha": "the saved adapter would mean something else",
    "lora.targets": "the adapter's shapes change",
    "lora.full": "the trained heads change",
    "lora.rank_pattern": "the adapter's shapes change",
    "lora.alpha_pattern": "the saved adapter would mean something else",
    "lora.scaling": "the saved adapter would mean something else",
    "lora.dora": "the adapter's shapes change",
    "lora.start": "the training began somewhere else",
    "seed": "the order of the samples changes",
    "batch.global_samples": "other samples in each step",
    "batch.global_tokens": "other samples in each step",
    "batch.micro_tokens": "other samples in each row",
    "curriculum": "other samples in each step",
    "precision": "other numbers from the next step on",
    "quantize": "other numbers from the next step on",
    "optimizer.weight_decay": "the optimizer's moments were made with another",
}
"""Values of a job that have to be those of the checkpoint, and why. Everything else may change."""
SAFE: Final = ("mesh", "batch.micro_samples", "lora.dropout", "optimizer", "loss", "checkpoint", "log_every_steps")
"""Parts of a job that may change, but for the values above."""
TAKES_EFFECT: Final = ("optimizer", "loss", "lora.dropout")
"""Values that may change, and make the rest of the training another one. Mesh and micro-batch do not."""


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"higgsc": __version__, **{name: version(name) for name in ("torch", "transformers", "peft")}}


def find_start(folder: Path, job: TrainJob, *, store_sha256: str, total: int) -> int:
    """The step to go on from: that of the newest whole checkpoint, or 0 where there is none.

    Removes what a killed process left unfinished, and sets damaged checkpoints aside.

    Args:
        folder: Where the checkpoints lie.
        job: What is to be trained now.
        store_sha256: Of the record of the store to be trained on now.
        total: Optimizer steps in all.

    Raises:
        StepError: If all checkpoints are damaged (65), or if the newest whole one is of another training (2).
    """
    recover_checkpoints(folder)
    newest = find_newest_whole(folder, lambda path: (read_progress(path), read_job(path)))
    if newest is None:
        return 0
    progress = read_progress(newest)
    changes = changed(read_job(newest), job)
    if progress.store_sha256 != store_sha256:
        changes.append("the prepared data (other samples)")
    if changes:
        safe = [f"{where} {old} → {new}" for where, old, new in _changes(read_job(newest), job, SAFE)
                if not any(f"{where}.".startswith(f"{path}.") for path in BREAKS_RESUME)]  # fmt: skip
        may_stay = f" (what else is different may stay: {', '.join(safe)})" if safe else ""
        raise StepError(
            f"{newest.name} was trained with other values, so training cannot go on from it: {'; '.join(changes)}",
            code=ExitCode.USAGE,
            path=newest,
            help=f"put the old values back to go on{may_stay}; "
            f"to start over, delete {folder} or give the spec another `name`",
        )
    later = [f"{where} {old} → {new}" for where, old, new in _changes(read_job(newest), job, TAKES_EFFECT)]
    if later and progress.step == total:
        raise StepError(
            f"the training finished with other values: {', '.join(later)}",
            code=ExitCode.USAGE,
            path=newest,
            help=f"to train anew, delete {folder} or give the spec another `name`; to go on, raise the number of steps",
        )
    if progress.step > total:
        raise StepError(
            f"{newest.name} is past the {total} steps that are asked for",
            code=ExitCode.USAGE,
            path=newest,
            help=f"raise `training.steps` or `training.epochs`; to start over, delete {folder}",
        )
    if later:
        logger.warning("from step %d on with other values: %s", progress.step + 1, ", ".join(later))
    different = [f"{name} {progress.versions.get(name)} → {now}" for name, now in versions().items()
                 if progress.versions.get(name) != now]  # fmt: skip
    if different:
        logger.warning("%s was saved by other versions (%s); rounding may differ", newest.name, ", ".join(different))
    return progress.step


def changed(before: Mapping[str, Any], job: TrainJob) -> list[str]:
    """What differs between a checkpoint's job and the present one and makes it impossible to go on."""
    kinds = ["the whole model" if lora is None else "an adapter" for lora in (before.get("lora"), job.lora)]
    if kinds[0] != kinds[1]:
        return [f"lora ({kinds[0]} was trained, not {kinds[1]})"]
    return [
        f"{where} {old} → {new} ({BREAKS_RESUME[path]})"
        for path in BREAKS_RESUME
        for where, old, new in _changes(before, job, (path,))
    ]


def _changes(before: Mapping[str, Any], job: TrainJob, paths: Iterable[str]) -> list[tuple[str, Any, Any]]:
    now = job.model_dump(mode="json")
    return [change for path in paths for change in _differences(path, _at(before, path), _at(now, path))]


def _at(job: Mapping[str, Any], path: str) -> Any:
    value: Any = job
    for word in path.split("."):
        value = value.get(word) if isinstance(value, Mapping) else None
    return value


def _differences(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [(path, old, new)] if old != new else []
    names = sorted(old.keys() | new.keys())
    return [(f"{path}.{name}", old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
