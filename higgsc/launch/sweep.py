"""A sweep on a scheduler that has job arrays: its builds together, and what is handed over as one array."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.launch.built import Target, open_build
from higgsc.launch.scheduler import Scheduler, Submission

SWEEP = "sweep.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The points of a sweep whose steps have array scripts."""

    folder: Path
    """Of the builds, absolute; `slurm/` in it holds the array scripts."""
    logs: Path
    """Where the arrays write what their tasks say before they go to the logs of their points. Absolute."""
    points: tuple[Target, ...]
    """The place of a point is the index of its tasks."""

    @property
    def root(self) -> Path:
        """The project root."""
        return self.points[0].root


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """One step of some points: an array, or the job of a single point."""

    step: str
    name: str
    """Stands for the job's id until there is one: `<train>`."""
    key: str
    """Idempotency key; that of a task has `_` and its index behind it."""
    tasks: Mapping[int, Submission]
    """By index."""
    after: tuple[str, ...] | None
    """Ids, or names, of the arrays whose task of the same index has to succeed before; None for a single job."""

    def keys(self) -> dict[int, str]:
        """The key that a point's journal notes, by index."""
        return {index: self.key if self.after is None else f"{self.key}_{index}" for index in self.tasks}


@runtime_checkable
class ArrayScheduler(Scheduler, Protocol):
    """A scheduler with arrays. The id of a task is that of the array with `_` and its index, wherever it is asked."""

    def array_commands(self, sweep: Sweep, array: Handover, after: Sequence[str]) -> list[tuple[str, ...]]:
        """The command that asks whether the array would be taken, and the one that submits it.

        Args:
            sweep: The sweep.
            array: What to submit.
            after: The arrays of `array.after`, by their ids where they have one.
        """

    def check_array(self, sweep: Sweep, array: Handover) -> None:
        """Ask whether the array would be taken.

        Raises:
            RefusedError: It would not.
        """

    def submit_array(self, sweep: Sweep, array: Handover, after: Sequence[str]) -> str:
        """Hand the array over, once; its id.

        Raises:
            RefusedError: It is not taken.
        """


def points_of(folder: Path) -> list[Path]:
    """The builds of a sweep's points, in the order of their tasks.

    Raises:
        StepError: The list of points cannot be read.
    """
    return [folder / Path(str(point["build"])).name for point in _table(folder)["points"]]


def sweep_of(targets: Sequence[Target]) -> Sweep | None:
    """The sweep that builds make up, if it can be submitted as arrays.

    It cannot if its points ask the scheduler for different things, or if a step takes several jobs in a row.

    Raises:
        StepError: The list of points cannot be read.
    """
    first, folder = targets[0], targets[0].folder.parent
    if len(targets) < 2 or int(first.plan.site.get("chain") or 1) > 1:
        return None
    if not (folder / SWEEP).is_file() or (logs := _table(folder)["logs"]) is None:
        return None
    places = points_of(folder)
    if [place.resolve() for place in places] != [target.folder for target in targets]:
        return None
    return Sweep(folder=folder, logs=first.root / logs, points=tuple(open_build(place) for place in places))


def array_logs(target: Target) -> tuple[Path, ...]:
    """Where the arrays of a build write that is a point of a sweep; nowhere for other builds.

    Raises:
        StepError: The list of points cannot be read.
    """
    folder = target.folder.parent
    logs = _table(folder)["logs"] if (folder / SWEEP).is_file() else None
    return (target.root / logs,) if logs is not None else ()


def handovers(sweep: Sweep, left: Sequence[Sequence[Submission]], jobs: Sequence[Mapping[str, str]]) -> list[Handover]:
    """What is handed over together: the tasks of a step that wait for the same arrays.

    Args:
        sweep: The sweep.
        left: What each point has to submit.
        jobs: Ids, by step, of the jobs of each point that are at work already.

    Returns:
        In the order in which they have to be submitted.
    """
    found: list[Handover] = []
    known = [dict(of_point) for of_point in jobs]
    wanted = [{submission.step.name: submission for submission in of_point} for of_point in left]
    for step in sweep.points[0].plan.steps:
        groups: dict[tuple[str, ...] | int, dict[int, Submission]] = {}
        for index, submissions in enumerate(wanted):
            if (submission := submissions.get(step.name)) is not None:
                arrays = [_array(known[index][need], index) for need in submission.after]
                # A task cannot wait for the one job of a point: such a step is a job of its own.
                group = index if None in arrays else tuple(array for array in arrays if array is not None)
                groups.setdefault(group, {})[index] = submission
        for number, (group, tasks) in enumerate(groups.items()):
            name = f"<{step.name}{f'-{number + 1}' if number else ''}>"
            # `afterok:ID_INDEX` holds when a waiting task was cancelled, `aftercorr:ID` does not: hence arrays of one.
            alone = isinstance(group, int) or (len(tasks) == 1 and not group)
            handover = Handover(
                step=step.name,
                name=name,
                key=next(iter(tasks.values())).key if alone else _key(tasks),
                tasks=tasks,
                after=None if alone or isinstance(group, int) else group,
            )
            for index in tasks:
                known[index][step.name] = name if alone else f"{name}_{index}"
            found.append(handover)
    return found


def _array(job: str, index: int) -> str | None:
    """The array that a job is the task of, if it has that index in it."""
    array, _, task = job.rpartition("_")
    return array if array and task == str(index) else None


def _key(tasks: Mapping[int, Submission]) -> str:
    text = "\n".join(f"{index} {submission.key}" for index, submission in tasks.items())
    return f"higgsc:{sha256(text.encode()).hexdigest()[:16]}"


def _table(folder: Path) -> dict[str, Any]:
    place = folder / SWEEP
    try:
        table = json.loads(place.read_text("utf-8"))
        _ = [str(point["build"]) for point in table["points"]], table["logs"]
    except (ValueError, KeyError, TypeError) as error:
        raise StepError(
            f"not a list of points ({error})", code=ExitCode.BAD_DATA, path=place, help="run `higgsc build`"
        ) from error
    return dict(table)
