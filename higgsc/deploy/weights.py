"""A checkpoint's weights in safetensors, one file or sharded, read and written one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.checkpoints.tensor_file import DTYPES, TensorFile
from higgsc.train.model.folder import INDEX_FILE, SINGLE_FILE


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says about a tensor."""

    name: str
    file: str
    """Name of the file that holds it."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    def stored_as(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype it takes in a checkpoint of `dtype`: integers keep theirs."""
        return dtype if self.dtype.is_floating_point else self.dtype


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint folder; `open_weights` makes one."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    files: tuple[str, ...]
    index: Mapping[str, Any] | None
    """The index of a sharded checkpoint, as stored."""


def open_weights(folder: Path) -> Weights:
    """Read the headers of a checkpoint's weights; a single file goes before an index, as in transformers.

    Raises:
        StepError: No weights, or a shard is missing (66); a file is damaged or disagrees with the index (65).
    """
    index = None
    if (folder / SINGLE_FILE).is_file():
        files: tuple[str, ...] = (SINGLE_FILE,)
    elif (folder / INDEX_FILE).is_file():
        index = _read_index(folder / INDEX_FILE)
        files = tuple(sorted(set(index["weight_map"].values())))
    else:
        raise StepError(
            f"the base has no {SINGLE_FILE} and no {INDEX_FILE}",
            code=ExitCode.MISSING_INPUT,
            path=folder,
            help="a base is a folder in transformers' format with safetensors weights",
        )
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for info in _headers(folder, file):
            tensors[info.name] = info
    if index is not None:
        for name, file in index["weight_map"].items():
            if name not in tensors or tensors[name].file != file:
                raise StepError(f"tensor {name!r} is not in {file}, where the index says", path=folder / INDEX_FILE)
        for name, info in tensors.items():
            if name not in index["weight_map"]:
                raise StepError(f"tensor {name!r} of {info.file} is not in the index", path=folder / INDEX_FILE)
    return Weights(folder=folder, tensors=tensors, files=files, index=index)


def copy_weights(
    weights: Weights,
    folder: Path,
    *,
    dtype: torch.dtype,
    change: Callable[[TensorInfo, torch.Tensor], torch.Tensor],
) -> None:
    """Write a checkpoint's weights with the same files and names, each tensor passed through `change`.

    Args:
        weights: The source.
        folder: Where to write; its files of these names are replaced.
        dtype: Dtype of the floating-point tensors written.
        change: Takes a tensor as stored and returns one of the same shape, in any floating dtype.
    """
    for file in weights.files:
        # Descending item size keeps every tensor aligned to its item size, as the safetensors library does.
        infos = sorted(
            (info for info in weights.tensors.values() if info.file == file),
            key=lambda info: (-info.stored_as(dtype).itemsize, info.name),
        )
        tensors = {info.name: (info.shape, info.stored_as(dtype)) for info in infos}
        with (
            safe_open(weights.folder / file, "pt") as source,
            TensorFile(folder / file, tensors, source.metadata()) as target,
        ):
            for info in infos:
                target.add(info.name, change(info, source.get_tensor(info.name)))
    if weights.index is not None:
        size = sum(math.prod(info.shape) * info.stored_as(dtype).itemsize for info in weights.tensors.values())
        metadata = {**(weights.index.get("metadata") or {}), "total_size": size}
        (folder / INDEX_FILE).write_text(
            json.dumps({**weights.index, "metadata": metadata}, indent=2) + "\n", encoding="utf-8"
        )


def _headers(folder: Path, file: str) -> list[TensorInfo]:
    path = folder / file
    if not path.is_file():
        raise StepError("a shard of the base is missing", code=ExitCode.MISSING_INPUT, path=path)
    infos = []
    try:
        with safe_open(path, "pt") as source:
            for name in source.keys():  # noqa: SIM118
                part = source.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise StepError(f"tensor {name!r} has dtype {part.get_dtype()}: the base is quantized", path=path)
                infos.append(TensorInfo(name, file, tuple(part.get_shape()), DTYPES[part.get_dtype()]))
    except (SafetensorError, OSError) as error:
        raise StepError(
            f"the base's weights are damaged: {error}", path=path, help="download or copy the base again"
        ) from error
    return infos


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text("utf-8"))
        files = index["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepError(f"not an index of safetensors shards: {error}", path=path) from error
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise StepError(f"shard {file!r} is not a file name", path=path)
    return index  # type: ignore[no-any-return]
