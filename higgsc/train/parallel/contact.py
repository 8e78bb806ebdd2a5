"""How long processes wait for one another, and how it shows that one is gone."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

from higgsc.contract.outcome import ExitCode, StepError

START_TIMEOUT = timedelta(minutes=30)
"""How long processes wait for one another at the start: one may still be downloading the base."""
STEP_TIMEOUT = "HIGGSC_STEP_TIMEOUT"
"""Environment variable: seconds that they wait from the first step on, 300 if not set. One that hangs longer fails the
training on all of them."""


def step_timeout() -> timedelta:
    """How long processes wait for one another from the first step on.

    Raises:
        StepError: If the environment says something that is no time.
    """
    value = os.environ.get(STEP_TIMEOUT, "300")
    try:
        timeout = timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        timeout = timedelta(0)
    if timeout < timedelta(seconds=1):
        raise StepError(
            f"{STEP_TIMEOUT} is `{value}`, which is not a number of seconds above 1",
            code=ExitCode.USAGE,
            help=f"unset it, or write {STEP_TIMEOUT}=300",
        )
    return timeout


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone or has not answered in time; backends have no type for it."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "TCPStore"))
