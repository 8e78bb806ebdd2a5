"""Slurm: the scheduler behind `--scheduler slurm`, and what `higgsc doctor` knows about clusters."""

from higgsc.launch.slurm.scheduler import create

__all__ = ["create"]
