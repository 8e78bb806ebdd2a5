"""A checkpoint's files written again with quantised weights, and read again as if they were not.

The files are those that transformers' `save_pretrained` writes of a model that torchao has quantised, to the byte of
every tensor; only that here a tensor is in memory a block of rows at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from higgsc.deploy.quantize.scheme import (
    PART_DTYPES,
    Scheme,
    dequantize_rows,
    is_quantized,
    metadata_of,
    part_name,
    parts_of,
    quantize_rows,
)
from higgsc.deploy.rewrite import bytes_of, write_at
from higgsc.deploy.weights import TensorInfo, Weights, open_weights
from higgsc.train.checkpoints.tensor_file import header_of
from higgsc.train.model.folder import INDEX_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of the tensors that were quantised, and of those that were not."""

    quantized_before: int
    quantized_after: int
    rest: int


def write_quantized(
    weights: Weights, folder: Path, scheme: Scheme, *, reached: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, float], Sizes]:
    """Write all files of a checkpoint with its linear weights quantised.

    Args:
        weights: Floating-point weights by transformers' names.
        folder: Where to write, into files of the same names.
        scheme: See `scheme`.
        reached: Told the name of each tensor as it is reached.

    Returns:
        Of each quantised tensor, the Frobenius norm of the error relative to that of the tensor; and the sizes.
    """
    told = _metadata(weights, scheme)
    errors: dict[str, float] = {}
    for file in weights.files:
        errors |= _write_file(weights, file, folder, scheme, told, reached)
    if weights.index is not None:
        layouts = {file: _layout(weights, file, scheme) for file in weights.files}
        size = sum(math.prod(shape) * dtype.itemsize for stored in layouts.values() for shape, dtype in stored.values())
        index = {
            **weights.index,
            "metadata": {**(weights.index.get("metadata") or {}), "total_size": size},
            "weight_map": {name: file for file, stored in layouts.items() for name in sorted(stored)},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    chosen = [info for info in weights.tensors.values() if is_quantized(info.name)]
    rest = [info for info in weights.tensors.values() if not is_quantized(info.name)]
    return errors, Sizes(
        quantized_before=sum(math.prod(info.shape) * info.dtype.itemsize for info in chosen),
        quantized_after=sum(math.prod(shape) * dtype.itemsize for i in chosen for shape, dtype in _parts(i, scheme)),
        rest=sum(math.prod(info.shape) * info.dtype.itemsize for info in rest),
    )


def _metadata(weights: Weights, scheme: Scheme) -> dict[str, str]:
    """Of all tensors, in every file: transformers keeps only one file's when it loads several."""
    by_kind: dict[tuple[int, torch.dtype], str] = {}
    told = {"format": "pt"}
    for name, info in weights.tensors.items():
        if not is_quantized(name):
            told[name] = json.dumps({"_type": "Tensor"})
            continue
        kind = info.row_values, info.dtype
        if kind not in by_kind:
            by_kind[kind] = metadata_of(*kind, scheme)
        told[name] = by_kind[kind]
    return {**told, "tensor_names": json.dumps(list(weights.tensors))}


def _parts(info: TensorInfo, scheme: Scheme) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    for part, dtype in PART_DTYPES[scheme].items():
        yield info.shape if part == "qdata" else (info.rows, 1), dtype


def _layout(weights: Weights, file: str, scheme: Scheme) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of a file's tensors, in the order of their bytes."""
    stored: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for info in weights.tensors.values():
        if info.file != file:
            continue
        if is_quantized(info.name):
            names = (part_name(info.name, part) for part in PART_DTYPES[scheme])
            stored |= zip(names, _parts(info, scheme), strict=True)
        else:
            stored[info.name] = info.shape, info.dtype
    # Descending item size keeps every tensor aligned to its own.
    return dict(sorted(stored.items(), key=lambda item: (-item[1][1].itemsize, item[0])))


def _write_file(
    weights: Weights,
    file: str,
    folder: Path,
    scheme: Scheme,
    metadata: Mapping[str, str],
    reached: Callable[[str], None],
) -> dict[str, float]:
    infos = [info for info in weights.tensors.values() if info.file == file]
    stored = _layout(weights, file, scheme)
    header = header_of(stored, metadata)
    starts, at = {}, len(header)
    for name, (shape, dtype) in stored.items():
        starts[name] = at
        at += math.prod(shape) * dtype.itemsize

    errors = {}
    with (folder / file).open("wb", buffering=0) as target:

        def write(rows: Tensor, at: int) -> None:
            write_at(target.fileno(), bytes_of(rows), at)

        write_at(target.fileno(), memoryview(header), 0)
        for info in infos:
            reached(info.name)
            norm = error = 0.0
            for first, end in info.blocks():
                rows = weights.read(info, first, end)
                if not is_quantized(info.name):
                    write(rows, starts[info.name] + first * info.row_values * info.dtype.itemsize)
                    continue
                parts = parts_of(quantize_rows(rows, scheme), scheme)
                for part, values in parts.items():
                    columns = info.row_values if part == "qdata" else 1
                    write(values, starts[part_name(info.name, part)] + first * columns * values.dtype.itemsize)
                exact = rows.float()
                norm += float(exact.square().sum())
                error += float((dequantize_rows(parts) - exact).square().sum())
            if is_quantized(info.name):
                errors[info.name] = math.sqrt(error / max(norm, 1e-30))
    return errors


@dataclass(frozen=True, slots=True)
class Dequantized(Weights):
    """A quantised checkpoint as one by the model's own names, in float32 where it is quantised."""

    parts: Mapping[str, Mapping[str, TensorInfo]]

    def read(self, info: TensorInfo, first: int, end: int) -> Tensor:
        """Rows of a tensor; see `Weights.read`."""
        if info.name not in self.parts:
            return Weights.read(self, info, first, end)
        parts = self.parts[info.name]
        return dequantize_rows({part: Weights.read(self, found, first, end) for part, found in parts.items()})


def open_quantized(folder: Path, weights: Weights, scheme: Scheme) -> Dequantized:
    """Read the headers of what `write_quantized` has written.

    Args:
        folder: Where it lies.
        weights: What it was made from.
        scheme: See there.
    """
    found = open_weights(folder)
    chosen = [name for name in weights.tensors if is_quantized(name)]
    parts = {name: {part: found.tensors[part_name(name, part)] for part in PART_DTYPES[scheme]} for name in chosen}
    whole = {name: replace(of["qdata"], name=name, dtype=torch.float32) for name, of in parts.items()}
    rest = {name: info for name, info in found.tensors.items() if name in weights.tensors}
    return Dequantized(folder, {**rest, **whole}, found.files, found.index, parts)
