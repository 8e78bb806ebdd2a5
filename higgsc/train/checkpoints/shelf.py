"""The folder of checkpoints: which ones stay, which one training goes on from, and what to do with damaged ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from higgsc.contract.jobs import CheckpointJob
from higgsc.contract.outcome import StepError
from higgsc.train.checkpoints.checkpoint import (
    Checkpoint,
    best_checkpoint,
    is_checkpoint,
    list_checkpoints,
    read_checkpoint,
    verify_checkpoint,
)

logger = logging.getLogger(__name__)


def prune_checkpoints(folder: Path, keep: CheckpointJob) -> list[Checkpoint]:
    """Delete all but the newest `keep_last` checkpoints, the best one, and those to keep for good.

    Interrupted ones do not count among them; they go when there is a newer regular one.

    Returns:
        The deleted ones.
    """
    checkpoints = list_checkpoints(folder)
    regular = [checkpoint for checkpoint in checkpoints if not checkpoint.interrupted]
    newest = regular[-1].step if regular else -1
    waiting = [checkpoint for checkpoint in checkpoints if checkpoint.interrupted and checkpoint.step > newest]
    last = keep.keep_last
    kept = {checkpoint.step for checkpoint in (*regular[-last:], *waiting[-last:])}
    if keep.keep_every is not None:
        kept |= {checkpoint.step for checkpoint in regular if checkpoint.step % keep.keep_every == 0}
    if regular:
        kept.add(best_checkpoint(regular, keep.best).step)
    old = [checkpoint for checkpoint in checkpoints if checkpoint.step not in kept]
    for checkpoint in old:
        _remove(checkpoint.path)
    return old


def recover_checkpoints(folder: Path) -> None:
    """Clear away what a killed process left half-done, and put back a checkpoint that it was about to replace."""
    for leftover in folder.glob(".step-*"):
        name = leftover.name.removeprefix(".")
        whole = folder / name.removesuffix(".replaced")
        if name.endswith(".replaced") and not whole.exists():
            leftover.rename(whole)
        else:
            logger.info("removing %s, which a killed process left unfinished", leftover)
            shutil.rmtree(leftover)


def find_newest_whole(folder: Path, check: Callable[[Path], object]) -> Path | None:
    """The newest checkpoint whose files are all as they were written, or None where there is no checkpoint at all.

    Damaged ones that are newer are named in the log and set aside as `step-N.damaged`.

    Args:
        folder: Where the checkpoints lie.
        check: Reads a checkpoint whose hashes are right; may find it damaged all the same, by StepError.

    Raises:
        StepError: If there are checkpoints, and all of them are damaged: a training is never started over in silence.
    """
    found = sorted((path for path in folder.glob("step-*") if is_checkpoint(path)), key=_number, reverse=True)
    newest: Path | None = None
    damaged: dict[Path, StepError] = {}
    for path in found:
        try:
            if newest is None:
                verify_checkpoint(path)
                check(path)
                newest = path
            else:  # of older ones, the figures are needed to tell the best
                read_checkpoint(path)
        except StepError as error:
            damaged[path] = error
    if found and newest is None:
        reasons = "".join(f"\n    {error.path}: {error.message}" for error in damaged.values())
        raise StepError(
            f"no checkpoint here is whole:{reasons}",
            path=folder,
            help="restore one of them from a backup, or delete this folder to start over",
        )
    for path, reason in damaged.items():
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logger.warning("set %s aside as %s: %s: %s", path.name, aside.name, reason.path, reason.message)
    return newest


def find_newest_regular(folder: Path, *, before: int) -> Checkpoint | None:
    """The newest whole checkpoint of a step before that one which was due, not saved because of a request to stop.

    Damaged ones are named in the log.
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        if checkpoint.interrupted or checkpoint.step >= before:
            continue
        try:
            verify_checkpoint(checkpoint.path)
        except StepError as error:
            logger.warning("passing over %s: %s: %s", checkpoint.path.name, error.path, error.message)
        else:
            return checkpoint
    return None


def remove_later(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint.step > step:
            _remove(checkpoint.path)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """Delete a checkpoint's folder; renamed first, so that a half-deleted one never looks whole."""
    doomed = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)
