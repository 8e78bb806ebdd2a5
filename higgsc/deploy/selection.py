"""Which checkpoint a path stands for: one of a run's, selected, or the one that the path is."""

from __future__ import annotations

from pathlib import Path

from higgsc.contract.jobs import BestMetric
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.checkpoints.checkpoint import (
    VALIDATION_METRIC,
    Checkpoint,
    is_checkpoint,
    list_checkpoints,
    read_checkpoint,
    select_checkpoint,
    verify_checkpoint,
)
from higgsc.train.checkpoints.progress import read_job


def find_checkpoint(path: Path, select: str | None) -> Checkpoint | None:
    """The checkpoint that a path stands for, with its hashes checked; None if it is something else.

    Args:
        path: Folder of a run, of its checkpoints, of one of them, or of something else.
        select: Of a run: `best`, `last` or `step-N`; None for the best.

    Raises:
        StepError: There is no such folder or checkpoint (66), the checkpoint is damaged (65), or there is nothing to
            select (2).
    """
    if not path.is_dir():
        raise StepError("no such folder", code=ExitCode.MISSING_INPUT, path=path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if any(map(is_checkpoint, folder.iterdir())):
        return _selected(folder, select or "best")
    if select is not None:
        raise StepError("--select is for runs, which have several checkpoints", code=ExitCode.USAGE, path=path)
    if not is_checkpoint(path.resolve()):
        return None
    verify_checkpoint(path)
    return read_checkpoint(path)


def _selected(folder: Path, select: str) -> Checkpoint:
    """One of a training's checkpoints, with its hashes checked.

    Args:
        folder: Where they lie, at least one.
        select: `best`, `last` or `step-N`.

    Raises:
        StepError: There is no such checkpoint (66), or it is damaged (65).
    """
    if select in ("best", "last"):
        # The figure that its job chose; a checkpoint of an older version may not say.
        newest = read_job(list_checkpoints(folder)[-1].path)
        by: BestMetric = newest.get("checkpoint", {}).get("best", VALIDATION_METRIC)
        return select_checkpoint(folder, "best" if select == "best" else "last", by=by)
    steps = {checkpoint.path.name: checkpoint for checkpoint in list_checkpoints(folder)}
    if select not in steps:
        raise StepError(
            f"there is no checkpoint `{select}`",
            code=ExitCode.MISSING_INPUT,
            path=folder,
            help=f"there are {', '.join(steps)}; `best` and `last` select one of them",
        )
    verify_checkpoint(steps[select].path)
    return steps[select]
