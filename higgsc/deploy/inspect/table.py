"""A folder of checkpoints as a table: a row for each step, with its figures, its state and why it is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from higgsc.contract.jobs import BestMetric
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.checkpoints.checkpoint import (
    MANIFEST,
    Checkpoint,
    best_checkpoint,
    file_problems,
    read_checkpoint,
)
from higgsc.train.checkpoints.progress import read_job, read_progress

State = Literal["whole", "right sizes", "damaged", "set aside"]
"""Hashes right; sizes right and hashes not looked at; not what was written; found damaged by a training."""

_FOLDER: Final = re.compile(r"step-([0-9]+)(\.damaged)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A checkpoint."""

    path: Path
    step: int
    state: State
    problem: StepError | None
    """The first thing that is wrong with it."""
    metrics: Mapping[str, float]
    """Empty if they cannot be read."""
    interrupted: bool
    """Saved because the training was asked to stop, only to go on from."""
    size: int
    """Bytes of all files."""
    mesh: Mapping[str, int]
    """`replicate`, `shard` and `tensor` of the processes that saved it; empty if the job cannot be read."""
    saved: str
    """When, in ISO 8601."""
    kept_for_good: bool
    """By `checkpoint.keep_every`."""
    best: bool = False

    def document(self) -> dict[str, Any]:
        """As JSON."""
        fields = {name: getattr(self, name) for name in Row.__slots__}
        return fields | {
            "path": str(self.path),
            "problem": self.problem and f"{self.problem.path}: {self.problem.message}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """A folder of checkpoints."""

    folder: Path
    rows: tuple[Row, ...]
    """By step."""
    best_by: BestMetric
    """What the best checkpoint has the lowest value of."""
    unfinished: tuple[str, ...]
    """Folders of checkpoints that are being written or deleted now, or were when a process was killed."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "folder": str(self.folder),
            "best_by": self.best_by,
            "unfinished": list(self.unfinished),
            "checkpoints": [row.document() for row in self.rows],
        }


def read_shelf(folder: Path, *, hashes: bool = True) -> Shelf:
    """Look at every checkpoint of a folder. A training may be at work with it.

    Args:
        folder: Where `step-*` lie.
        hashes: Whether to read all files and compare their hashes; without, only their sizes.

    Raises:
        StepError: If there is no such folder (66).
    """
    if not folder.is_dir():
        raise StepError("there is no such folder", code=ExitCode.MISSING_INPUT, path=folder)
    paths = [path for path in folder.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
    jobs = {path: _job(path) for path in paths}
    rows = [row for path in paths if (row := _row(path, jobs[path], hashes=hashes)) is not None]
    rows.sort(key=lambda row: (row.step, row.path.name))
    best_by = _best_by(jobs[rows[-1].path] if rows else {})
    # As `select_checkpoint` chooses, which looks at hashes only afterwards.
    able = [
        Checkpoint(path=row.path, step=row.step, metrics=row.metrics, interrupted=row.interrupted)
        for row in rows
        if row.state != "set aside" and row.metrics
    ]
    best = best_checkpoint(able, best_by).path if able else None
    return Shelf(
        folder=folder,
        rows=tuple(replace(row, best=row.path == best) for row in rows),
        best_by=best_by,
        unfinished=tuple(sorted(path.name for path in folder.glob(".step-*"))),
    )


def _row(path: Path, job: Mapping[str, Any], *, hashes: bool) -> Row | None:
    """A row; None if the training has deleted the checkpoint meanwhile."""
    match = _FOLDER.fullmatch(path.name)
    assert match is not None
    step, aside = int(match[1]), match[2] is not None
    problem = next(_problems(path, hashes=hashes), None)
    try:
        checkpoint = read_checkpoint(path)
        metrics, interrupted = checkpoint.metrics, checkpoint.interrupted
    except StepError:  # one of the problems
        metrics, interrupted = {}, False
    try:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        dated = path / MANIFEST if (path / MANIFEST).is_file() else path
        saved = datetime.fromtimestamp(dated.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    every = _at(job, "checkpoint", "keep_every")
    mesh = _at(job, "mesh")
    whole: State = "whole" if hashes else "right sizes"
    return Row(
        path=path,
        step=step,
        state="set aside" if aside else whole if problem is None else "damaged",
        problem=problem,
        metrics=metrics,
        interrupted=interrupted,
        size=size,
        mesh={name: mesh.get(name, 1) for name in ("replicate", "shard", "tensor")} if isinstance(mesh, dict) else {},
        saved=saved.isoformat(timespec="seconds"),
        kept_for_good=isinstance(every, int) and every > 0 and step % every == 0 and not interrupted,
    )


def _problems(path: Path, *, hashes: bool) -> Iterator[StepError]:
    """What keeps a training from going on from a checkpoint."""
    yield from file_problems(path, hashes=hashes)
    for read in (read_checkpoint, read_progress, read_job):
        try:
            read(path)
        except StepError as problem:
            yield problem


def _job(path: Path) -> Mapping[str, Any]:
    try:
        return read_job(path)
    except StepError:  # one of the problems
        return {}


def _best_by(job: Mapping[str, Any]) -> BestMetric:
    found = _at(job, "checkpoint", "best")
    known: tuple[BestMetric, ...] = get_args(BestMetric)
    return next((metric for metric in known if metric == found), "validation/audio_loss")


def _at(job: object, *path: str) -> Any:
    for key in path:
        job = job.get(key) if isinstance(job, Mapping) else None
    return job
