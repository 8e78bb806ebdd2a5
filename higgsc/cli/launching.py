"""What `submit`, `run`, `status`, `logs` and `cancel` share: from the argument to builds on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from higgsc.cli.compiling import compile_and_report, headline, refuse_without_data, relative
from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.ir import Ir
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.build import LOCK, Build, builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.points import former_points, sweep_files
from higgsc.emit.write import remove, write
from higgsc.launch.at_work import refuse_to_rebuild, refuse_to_remove
from higgsc.launch.built import Target, open_build
from higgsc.launch.journal import read_journal
from higgsc.launch.locate import builds_below, is_build, of_run, targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A build that is ready, with the spec's state where it was just compiled from one."""

    target: Target
    headline: str
    ir: Ir | None


def launches(
    name: Path, *, site: str | None, overrides: tuple[str, ...], force: bool = False, data_here: bool = True
) -> list[Launch]:
    """Build what has to be built; exits with 1 when the spec has errors.

    Args:
        name: Of a spec or a build.
        site: As from `--site`.
        overrides: As from `--set`.
        force: Whether to overwrite what was edited by hand.
        data_here: Whether the steps will see the files of this machine.

    Raises:
        StepError: There is no such spec or build, jobs are at work with another build of the same run (1), or files
            that the spec names are not here (66).
    """
    if is_build(name):
        if site is not None or overrides:
            raise StepError("--site and --set need a spec; this is a build", code=ExitCode.USAGE, path=name)
        opened = [open_build(folder) for folder in builds_below(name)]
        return [
            Launch(target=target, headline=f"{target.plan.name}  {target.plan.hardware}", ir=None) for target in opened
        ]
    compilation = compile_and_report(name, site=site, overrides=overrides)
    if not compilation.compiled:
        sys.exit(ExitCode.DIAGNOSTICS)
    if data_here:
        refuse_without_data(compilation)
    builds = builds_of(compilation)
    _write(compilation, builds, force=force)
    return [
        Launch(
            target=open_build(compilation.root / build.plan.build),
            headline=headline(build.plan, build.ir),
            ir=build.ir,
        )
        for build in builds
    ]


def _write(compilation: Compilation, builds: Sequence[Build], *, force: bool) -> None:
    """Write the builds, unless jobs are at work with what they would replace."""
    root = compilation.root
    emitted = [(build.plan, emit_all(build)) for build in builds]
    for plan, files in emitted:
        if read_journal(root / plan.run) is not None:
            refuse_to_rebuild(files[LOCK], of_run(root / plan.run))
    former = former_points(compilation)
    for place in former:
        refuse_to_remove(open_build(place))
    for place in former:
        remove(place)
    if beside := sweep_files(compilation):
        write(root / compilation.folder, beside, force=force, below=[Path(plan.build).name for plan, _ in emitted])
    for plan, files in emitted:
        write(root / plan.build, files, force=force)


def asked_about(name: Path | None) -> list[Target]:
    """The builds that a spec, a build, a run or its name stands for; all runs below `runs/` without a name.

    Raises:
        StepError: There is no such thing, or the spec has errors or is not built yet.
    """
    if name is None or not name.is_file():
        return targets(name)
    compilation = compile_spec(name)
    if not compilation.compiled:
        raise StepError("the spec has errors", code=ExitCode.DIAGNOSTICS, path=name, help=f"run `higgsc check {name}`")
    return [open_build(compilation.root / build.plan.build) for build in builds_of(compilation)]


def run_folder(what: Path) -> Path:
    """The folder that is meant: as it stands, or the run of that name or spec.

    Raises:
        StepError: See `asked_about`; or it is a sweep, which has several (2).
    """
    if what.is_dir():
        return what
    found = asked_about(what)
    if len(found) > 1:
        raise StepError(
            f"`{what}` is a sweep of {len(found)} runs: name one of them",
            code=ExitCode.USAGE,
            help=", ".join(relative(target.run) for target in found[:6]),
        )
    return found[0].run
