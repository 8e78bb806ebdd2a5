"""What a frozen matrix takes when it is rounded to eight or four bits (`higgsc/train/decoder/quantized.py`)."""

from __future__ import annotations

from typing import Literal

Quantize = Literal["fp8", "int8", "nf4"]

FP8_CAPABILITY = (8, 9)
"""Compute capability from which on tensor cores multiply 8-bit floats."""
_SCALE = 4
_BLOCK = 64
"""Numbers of a row that share a scale, with nf4."""


def matrix_bytes(out: int, inputs: int, scheme: Quantize) -> int:
    """Bytes of a matrix `[out, inputs]`, scales included.

    fp8, int8: a byte a number, and a float32 scale a row. nf4: half a byte a number, and a float32 scale for 64.
    """
    if scheme == "nf4":
        return out * inputs // 2 + _SCALE * out * (inputs // _BLOCK)
    return out * (inputs + _SCALE)
