"""A checkpoint's weights in safetensors, one file or sharded, read some rows at a time.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors' bytes;
see https://github.com/huggingface/safetensors#format. The library wants a tensor in memory as a whole, and all of a
file to write it; the largest of the released model has 1.6 GB in float32. Here it is blocks of a few megabytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.checkpoints.tensor_file import DTYPES
from higgsc.train.model.folder import INDEX_FILE, SINGLE_FILE

BLOCK_VALUES = 2**20
"""Values of a tensor that are worked on at a time, 4 MB in float32: with fewer, threads wait for the interpreter; with
more, for memory."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says about a tensor."""

    name: str
    file: str
    """Name of the file that holds it."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    """Where its bytes begin in the file."""

    @property
    def rows(self) -> int:
        """Length of the first dimension; a scalar is a row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_values(self) -> int:
        return math.prod(self.shape[1:])

    def stored_as(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype it takes in a checkpoint of `dtype`: integers keep theirs."""
        return dtype if self.dtype.is_floating_point else self.dtype

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and the one after the last of each block. They are of equal size as far as possible, so that none
        is a single row, whose product is another routine of the library, which adds in another order."""
        count = math.ceil(self.rows / max(1, BLOCK_VALUES // max(1, self.row_values)))
        return pairwise(self.rows * block // count for block in range(count + 1))


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint folder; `open_weights` makes one."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    files: tuple[str, ...]
    index: Mapping[str, Any] | None
    """The index of a sharded checkpoint, as stored."""

    def read(self, info: TensorInfo, first: int, end: int) -> torch.Tensor:
        """Rows of a tensor, as stored, `[end - first, ...]`.

        They are read, not mapped: mapped pages of a file count as the process's memory while they are cached.

        Raises:
            StepError: The file has become shorter than its header says (65).
        """
        rows = torch.empty((end - first, *info.shape[1:]) if info.shape else (), dtype=info.dtype)
        buffer = rows.reshape(-1).view(torch.uint8).numpy().data
        with (self.folder / info.file).open("rb", buffering=0) as file:
            file.seek(info.start + first * info.row_values * info.dtype.itemsize)
            while len(buffer):
                read = file.readinto(buffer)
                if not read:
                    raise StepError("the file ends in the middle of a tensor", path=self.folder / info.file)
                buffer = buffer[read:]
        return rows


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


def open_file(folder: Path, file: str) -> Weights:
    """Read the header of one file of weights, whatever its name; errors as in `open_weights`."""
    tensors = {info.name: info for info in _headers(folder, file)}
    return Weights(folder=folder, tensors=tensors, files=(file,), index=None)


def write_index(weights: Weights, folder: Path, *, dtype: torch.dtype, rename: Callable[[str], str]) -> None:
    """Write the index of a sharded checkpoint again; nothing for one in a single file."""
    if weights.index is None:
        return
    size = sum(math.prod(info.shape) * info.stored_as(dtype).itemsize for info in weights.tensors.values())
    metadata = {**(weights.index.get("metadata") or {}), "total_size": size}
    names = {rename(name): file for name, file in weights.index["weight_map"].items()}
    index = {**weights.index, "metadata": metadata, "weight_map": names}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _headers(folder: Path, file: str) -> list[TensorInfo]:
    path = folder / file
    if not path.is_file():
        raise StepError("a shard of the base is missing", code=ExitCode.MISSING_INPUT, path=path)
    try:
        with safe_open(path, "pt"):  # which checks that header and size of the file agree
            pass
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise StepError(
            f"the base's weights are damaged: {error}", path=path, help="download or copy the base again"
        ) from error
    infos = []
    for name, stated in header.items():
        if name == "__metadata__":
            continue
        if stated["dtype"] not in DTYPES:
            raise StepError(f"tensor {name!r} has dtype {stated['dtype']}: the base is quantized", path=path)
        start = 8 + length + stated["data_offsets"][0]
        infos.append(TensorInfo(name, file, tuple(stated["shape"]), DTYPES[stated["dtype"]], start))
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
