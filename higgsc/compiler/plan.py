"""The compiler's output: a plan is a list of steps, each one command with its resources and its job file."""

from __future__ import annotations

from dataclasses import dataclass

from higgsc.contract.jobs import JobBase
from higgsc.spec.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one step needs."""

    nodes: int
    processes_per_node: int
    """Processes that torchrun starts on each node: one for each GPU, or for each CPU worker."""
    gpus_per_node: int
    """0 for a step without GPUs."""
    gpu: str | None
    """GPU type, if the spec names one."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command. `argv` runs one process of it; an emitter adds the launcher."""

    name: str
    title: str
    """What the step does, in a few words."""
    argv: tuple[str, ...]
    """Relative to the project root, which is the working directory of every step."""
    needs: tuple[str, ...]
    """Names of the steps that have to finish first."""
    resources: Resources
    job: JobBase
    interruptible: bool
    """Whether the step saves its work when asked to stop, and takes it up when started again."""
    tasks: int = 1
    """Independent parts that a scheduler may run at the same time, each with `--shard` and its number, from 0; the
    command without it does them all."""
    job_path: str
    """Where the job file is written, relative to the project root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A compiled spec: everything that an emitter may use."""

    name: str
    compiler: str
    """Version of higgsc."""
    spec: str
    """The spec's path, relative to the project root."""
    build: str
    """The folder of the emitted files, relative to the project root."""
    run: str
    """The run's folder, relative to the project root."""
    hardware: str
    """Short form, `8×H200`."""
    steps: tuple[Step, ...]
    site: Site
    """The cluster, as in the spec."""
    secrets: tuple[str, ...]
    """Names of environment variables that the jobs need."""

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)
