"""Slurm: the scheduler behind `--scheduler slurm`, and what `higgsc doctor` knows about clusters."""
