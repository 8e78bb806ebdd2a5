"""The numbers of a safetensors file, a block at a time: of the released model's heads, one is 1.6 GB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from higgsc.contract.outcome import StepError

BLOCK = 1 << 24
"""Numbers in memory at a time, unless a single row has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What can be said of a tensor without its neighbours."""

    name: str
    shape: tuple[int, ...]
    finite: bool
    zero: bool
    """Whether every number is zero."""


def summaries(path: Path) -> Iterator[Summary]:
    """Read every tensor of a file.

    Raises:
        StepError: The file is damaged (65).
    """
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape = tuple(file.get_slice(name).get_shape())
                finite = zero = True
                for block in blocks(file, name):
                    finite = finite and bool(torch.isfinite(block).all())
                    zero = zero and not bool(block.any())
                yield Summary(name=name, shape=shape, finite=finite, zero=zero)
    except (SafetensorError, OSError) as error:
        raise StepError(f"the file of tensors is damaged: {error}", path=path) from error


def blocks(file: Any, name: str) -> Iterator[torch.Tensor]:
    """A tensor of a file that `safe_open` has opened, in blocks of rows."""
    part = file.get_slice(name)
    shape = part.get_shape()
    if not shape:
        yield file.get_tensor(name)
        return
    rows = max(1, BLOCK // max(1, prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield part[start : start + rows]
