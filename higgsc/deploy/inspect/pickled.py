"""Weights that were stored by pickling, read without running anything.

A pickle is a program. `torch.load(weights_only=True)` runs only the part of it that builds tensors, and refuses one
that names anything else, such as the function that runs a shell
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line

_GLOBAL = re.compile(r"GLOBAL (\S+)")
_WANTS = re.compile(rf"{_GLOBAL.pattern}|Trying to |[Cc]an only |Only persistent_load|must be imported")
"""What torch says of a pickle that asks for more than tensors; of what is no pickle at all it says other things."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, by name; mapped from the file where its format allows.

    Raises:
        StepError: The file cannot be opened (66); it is damaged, wants to run something, or holds other things than
            plain tensors (65).
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise StepError(f"cannot be read: {error.strerror}", code=ExitCode.MISSING_INPUT, path=path) from error
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and _WANTS.search(str(error)):
            raise _refused(error, path) from error
        raise StepError(
            f"the pickled weights are damaged: {first_line(error)}",
            path=path,
            help="restore or download the file again",
        ) from error
    if not isinstance(found, Mapping):
        raise StepError(f"holds a {type(found).__name__} instead of tensors by name", path=path)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise StepError(f"{name!r} is a {type(value).__name__} instead of a tensor by name", path=path)
        if value.layout != torch.strided or not value.is_floating_point():
            raise StepError(f"tensor {name!r} is {value.dtype} in {value.layout}, not plain numbers", path=path)
        if value.nbytes > value.untyped_storage().nbytes():
            raise StepError(
                f"tensor {name!r} of shape {list(value.shape)} has more numbers than are stored for it", path=path
            )
    return dict(found)


def _refused(error: pickle.UnpicklingError, path: Path) -> StepError:
    named = _GLOBAL.search(str(error))
    what = f"`{named[1]}`" if named else "something that builds no tensor"
    return StepError(
        f"this pickle wants to use {what}, which is no part of storing tensors; nothing of it was run",
        path=path,
        help="do not load it by other means: get the adapter as safetensors, from where you trust",
    )
