"""torchao, which only quantised models need: an extra of its own."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch

from higgsc.contract.outcome import ExitCode, StepError

OLDEST = (0, 18)
"""First version whose files are known to load here."""


def check_torchao() -> None:
    """Whether torchao is there, and new enough.

    Raises:
        StepError: It is not (66); nothing else is used in its place.
    """
    way_out = "pip install 'higgsc[quantize]'"
    try:
        found = version("torchao")
        import_module("torchao")
    except PackageNotFoundError as error:
        raise StepError(
            "a quantised model needs torchao, which is not installed", code=ExitCode.MISSING_INPUT, help=way_out
        ) from error
    except (ImportError, OSError) as error:
        raise StepError(
            f"torchao {found} cannot be imported beside torch {torch.__version__}: {error}",
            code=ExitCode.MISSING_INPUT,
            help=way_out,
        ) from error
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < OLDEST:
        raise StepError(
            f"torchao {found} is too old for a quantised model: {'.'.join(map(str, OLDEST))} or newer is needed",
            code=ExitCode.MISSING_INPUT,
            help=way_out,
        )
