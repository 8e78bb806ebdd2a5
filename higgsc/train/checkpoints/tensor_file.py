"""A safetensors file written while only one of its tensors is in memory.

A file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors' bytes; see
https://github.com/huggingface/safetensors#format. `safetensors.torch.save_file` wants all tensors of a file at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
"""By their names in a header."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def header_of(
    tensors: Mapping[str, tuple[Sequence[int], torch.dtype]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What a file begins with.

    Args:
        tensors: Name to shape and dtype, in the order of their bytes.
        metadata: More words about the file.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TensorFile:
    """Takes the tensors of a file one after the other; when closed, it is on disk.

    Args:
        path: The file to write.
        tensors: Name to shape and dtype, in the order in which they will come: descending item size keeps every
            tensor aligned to its own.
        metadata: Of the header.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[Sequence[int], torch.dtype]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._tensors, self._next = path, tensors, iter(tensors)
        self._header = header_of(tensors, metadata)
        self._hash, self.size = hashlib.sha256(), 0

    def __enter__(self) -> TensorFile:
        self._file = self._path.open("wb")
        self._write(self._header)
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, from any device.

        Raises:
            OSError: If the disk refuses.
        """
        expected = next(self._next)
        shape, dtype = self._tensors[expected]
        assert (name, tuple(tensor.shape)) == (expected, tuple(shape)), f"{name}: {tuple(tensor.shape)} for {expected}"
        stored = tensor.to("cpu", dtype).contiguous()
        self._write(stored.reshape(-1).view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of what has been written."""
        return self._hash.hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                assert next(self._next, None) is None, "a tensor is missing"
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
