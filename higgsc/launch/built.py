"""A build as a launcher sees it: `plan.json` read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from higgsc.contract.outcome import ExitCode, StepError


class BuiltResources(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    gpu: str | None


class BuiltStep(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    argv: tuple[str, ...]
    needs: tuple[str, ...]
    resources: BuiltResources
    interruptible: bool
    tasks: int
    job_path: str
    """Relative to the project root."""


class BuiltPlan(BaseModel):
    """What `plan.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_schema: Literal["higgsc.plan/v1"] = Field(alias="schema")
    name: str
    compiler: str
    spec: str
    root: str
    """The project root, relative to the folder of the build."""
    run: str
    hardware: str
    secrets: tuple[str, ...]
    site: dict[str, Any]
    steps: tuple[BuiltStep, ...]


def load_plan(build: Path) -> BuiltPlan:
    """Read the plan of a build.

    Raises:
        StepError: There is no plan (66), or it is not one of this version (65).
    """
    path = build / "plan.json"
    try:
        return BuiltPlan.model_validate_json(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise StepError("no plan here", code=ExitCode.MISSING_INPUT, path=path, help="run `higgsc build`") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StepError(f"not a plan of this version: {where}: {first['msg']}", path=path) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A build on disk, with the places that its relative paths start from. All paths are absolute."""

    plan: BuiltPlan
    folder: Path
    """Of the build."""
    root: Path
    """The project root: the working directory of every step."""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.root / self.plan.run

    def step(self, name: str) -> BuiltStep:
        return next(step for step in self.plan.steps if step.name == name)


def open_build(folder: Path) -> Target:
    """A build by its folder.

    Raises:
        StepError: As `load_plan`.
    """
    plan = load_plan(folder)
    return Target(plan=plan, folder=folder.resolve(), root=(folder / plan.root).resolve())
