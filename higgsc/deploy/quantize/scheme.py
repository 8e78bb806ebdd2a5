"""How a weight becomes 8 bits: torchao's weight-only schemes, a scale for each row.

    int8    symmetric, round(w / s) with s = max |row| / 127.5
    fp8     float8_e4m3fn, w / s with s = max |row| / 448

Values, scales and their metadata are made by torchao; here is only which weights, and some rows of them at a time. A
row's scale depends on that row alone, so blocks of rows give the same bytes as the tensor as a whole.

Quantised are the linear layers of the decoder (attention and both feed-forward networks), 85 % of the released
model's weights. Not quantised are

- norms: a few thousand numbers, which scale everything after them;
- embeddings: a row of them is looked up, not multiplied, so that there is nothing to gain but disk;
- heads: their errors go straight into the logits, where the likeliest code is often ahead by little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

Scheme = Literal["int8", "fp8"]

KEPT = ("model.embed_tokens", "model.embed_audio_tokens", "audio_lm_head", "text_lm_head")
"""Modules with a matrix that stays as it is."""

_LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]|(audio_)?mlp\.(gate|up|down))_proj\.weight")

PART_DTYPES: Mapping[Scheme, Mapping[str, torch.dtype]] = {
    "int8": {"qdata": torch.int8, "scale": torch.float32, "zero_point": torch.int8},
    "fp8": {"qdata": torch.float8_e4m3fn, "scale": torch.float32},
}
"""What a weight `[rows, columns]` is stored as: `qdata` of its shape, the others `[rows, 1]`."""


def is_quantized(name: str) -> bool:
    """Whether the tensor of that name is one of those that are quantised."""
    return _LINEAR.fullmatch(name) is not None


def part_name(name: str, part: str) -> str:
    """What torchao calls a part of a weight in a file: `a.b.weight` has `a.b._weight_qdata`."""
    module, _, weight = name.rpartition(".")
    return f"{module}._{weight}_{part}"


def quantize_rows(rows: Tensor, scheme: Scheme) -> Any:
    """Rows of a weight `[n, columns]` as a tensor of torchao's, on the device they are on."""
    api = import_module("torchao.quantization")
    if scheme == "int8":
        return api.Int8Tensor.from_hp(rows, granularity=api.PerRow())
    return api.Float8Tensor.from_hp(rows, float8_dtype=torch.float8_e4m3fn, granularity=api.PerRow())


def parts_of(quantized: Any, scheme: Scheme) -> dict[str, Tensor]:
    """The plain tensors that a tensor of torchao's consists of."""
    parts = {part: getattr(quantized, part) for part in PART_DTYPES[scheme]}
    for part, dtype in PART_DTYPES[scheme].items():
        found = parts[part].dtype
        assert found == dtype, f"torchao's {part} is {found}, not {dtype}"
    return parts


def dequantize_rows(parts: Mapping[str, Tensor]) -> Tensor:
    """Rows in float32 from their parts; both schemes are symmetric, so that every zero point is 0."""
    return parts["qdata"].float() * parts["scale"]


def metadata_of(columns: int, dtype: torch.dtype, scheme: Scheme) -> str:
    """What a file's header has to say of a quantised weight, in torchao's words: the same for all of its rows.

    Args:
        columns: Length of a row.
        dtype: What the model computes in.
        scheme: How it is quantised.
    """
    support = import_module("torchao.prototype.safetensors.safetensors_support")
    _, metadata = support.flatten_tensor_state_dict(
        {"a.weight": quantize_rows(torch.ones(1, columns, dtype=dtype), scheme)}
    )
    return str(metadata["a.weight"])


def load_config(scheme: Scheme) -> dict[str, Any]:
    """`quantization_config` of a model's `config.json`, by which transformers knows how to load it."""
    api, transformers = import_module("torchao.quantization"), import_module("transformers")
    config = api.Int8WeightOnlyConfig() if scheme == "int8" else api.Float8WeightOnlyConfig()
    made: dict[str, Any] = transformers.TorchAoConfig(config, modules_to_not_convert=list(KEPT)).to_dict()
    return made
