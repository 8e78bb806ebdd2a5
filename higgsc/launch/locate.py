"""From what a user types (a spec, a build, a run, its name) to the builds that it means."""

from __future__ import annotations

from pathlib import Path

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import Target, open_build
from higgsc.launch.journal import JOURNAL, read_journal
from higgsc.launch.sweep import SWEEP, points_of


def of_run(run: Path) -> Target:
    """The build that a run was started from, by its journal.

    Raises:
        StepError: There is no journal, or the build is gone (66).
    """
    journal = read_journal(run)
    if journal is None:
        raise StepError("nothing was started in this folder", code=ExitCode.MISSING_INPUT, path=run)
    return open_build(run / journal.root / journal.build)


def is_build(path: Path) -> bool:
    """Whether a folder is a build, or a sweep of builds."""
    return (path / "plan.json").is_file() or (path / SWEEP).is_file()


def builds_below(folder: Path) -> list[Path]:
    """The builds in a folder: itself, or the points of a sweep.

    Raises:
        StepError: The list of a sweep's points cannot be read.
    """
    if (folder / "plan.json").is_file():
        return [folder]
    return points_of(folder)


def runs_below(folder: Path) -> list[Path]:
    """Every folder below that holds a journal, newest first."""
    found = (path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{JOURNAL}"))
    return [path.parent for path in sorted(found, key=lambda path: (-path.stat().st_mtime, path))]


def targets(name: Path | None) -> list[Target]:
    """The builds that `status`, `logs` and `cancel` are asked about.

    Args:
        name: A run's folder or name, a build's folder; None for all runs below `runs/`. Specs are the caller's matter.

    Raises:
        StepError: There is no such thing (66).
    """
    if name is None:
        return [of_run(run) for run in runs_below(Path("runs"))]
    for folder in (name, Path("runs") / name, Path("generated") / name):
        if (folder / JOURNAL).is_file():
            return [of_run(folder)]
        if is_build(folder):
            return [open_build(build) for build in builds_below(folder)]
        if folder.is_dir() and (runs := runs_below(folder)):
            return [of_run(run) for run in runs]
    known = ", ".join(str(run.relative_to("runs")) for run in runs_below(Path("runs"))[:8])
    raise StepError(
        f"no run, build or spec `{name}` here",
        code=ExitCode.MISSING_INPUT,
        help=f"the runs below runs/: {known}"
        if known
        else "there is no run below runs/; start one with `higgsc submit`",
    )
