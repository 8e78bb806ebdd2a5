"""Everything that is wrong with a checkpoint or an adapter, rather than the first thing: files, figures, weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.inspect.contents import Expected, adapter_contents, model_contents, moments_contents
from higgsc.deploy.inspect.report import Report
from higgsc.train.checkpoints.checkpoint import damaged, file_problems, read_checkpoint, unknown_files
from higgsc.train.checkpoints.progress import read_job, read_progress


def check_checkpoint(path: Path, *, base: Path | None = None) -> Report:
    """Check a checkpoint against its manifest, its job and its base.

    Args:
        path: The folder `step-N`.
        base: Folder of the base; if not given, the one that the checkpoint names, or the catalog's shapes.

    Raises:
        StepError: If there is no such folder, or no base in `base` (66).
    """
    if not path.is_dir():
        raise StepError("there is no checkpoint here", code=ExitCode.MISSING_INPUT, path=path)
    report = Report(path)
    for problem in file_problems(path):
        report.add(problem)
    try:
        for file in unknown_files(path):
            report.add(StepError("is not in the manifest: it was not saved with the checkpoint", path=file))
    except StepError as problem:
        report.add(problem)
    expected = _figures(path, report)
    if (path / "adapter").is_dir():
        shapes = adapter_contents(path / "adapter", report, base, expected)
    elif any(path.glob("model*.safetensors")):
        shapes = model_contents(path, report, base, expected)
    else:
        shapes = {}
        report.add(StepError("holds neither an adapter/ nor a model*.safetensors", path=path))
    moments_contents(path, report, shapes, expected)
    return report


def check_adapter(folder: Path, *, base: Path | None = None) -> Report:
    """Check an adapter in PEFT's format by itself; see `check_checkpoint`."""
    report = Report(folder)
    adapter_contents(folder, report, base, Expected())
    return report


def _figures(path: Path, report: Report) -> Expected:
    """Check the three JSON files, and the step that they agree on."""
    steps: dict[str, int] = {}
    updates: int | None = None
    job: Mapping[str, Any] = {}
    if (named := re.match(r"step-([0-9]+)", path.name)) is not None:
        steps["the folder's name"] = int(named[1])
    try:
        checkpoint = read_checkpoint(path)
        steps["metrics.json"] = checkpoint.step
        for name, value in checkpoint.metrics.items():
            if not math.isfinite(value):
                report.add(damaged(path / "metrics.json", f"has {value} for `{name}`"))
    except StepError as problem:
        report.add(problem)
    try:
        progress = read_progress(path)
        steps["progress.json"] = progress.step
        updates = progress.step - len(progress.skipped)
    except StepError as problem:
        report.add(problem)
    try:
        job = read_job(path)
    except StepError as problem:
        report.add(problem)
    if len(set(steps.values())) > 1:
        said = ", ".join(f"{step} by {where}" for where, step in steps.items())
        report.add(StepError(f"is of step {said}", path=path, help="it was renamed, or put together from two"))
    return Expected(updates=updates, job=job)
