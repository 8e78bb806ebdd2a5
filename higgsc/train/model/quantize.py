"""The matrices of a base's layers rounded to eight or four bits, once, before an adapter is trained on them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from higgsc.catalog.quantized import FP8_CAPABILITY
from higgsc.contract.outcome import StepError
from higgsc.train.decoder.quantized import BLOCK, QuantizedLinear, Scheme

logger = logging.getLogger(__name__)

_PRODUCTS = {
    "fp8": "multiplied as it is by torch._scaled_mm",
    "int8": "each matrix is made whole for its products",
    "nf4": "each matrix is made whole for its products",
}


def quantize_base(causal: Any, scheme: Scheme) -> None:
    """Round the matrices of attention and feed-forward networks in every layer, in place, adapted or not.

    Embeddings, norms and heads stay as they are, and so do adapters. One matrix at a time, so that no more than one is
    there twice.

    Args:
        causal: A `HiggsAudioV2ForConditionalGeneration`, its adapters on it already, on the device where it is trained.
        scheme: How.

    Raises:
        StepError: If a matrix does not divide into blocks of the scheme (65).
    """
    for layer in causal.model.layers:
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear and ".lora_" not in path:
                if scheme == "nf4" and module.in_features % BLOCK:
                    raise StepError(
                        f"nf4 rounds {BLOCK} numbers of a row at a time, and `{path.removesuffix('.base_layer')}` "
                        f"has rows of {module.in_features}",
                        help="write `int8` or `fp8`",
                    )
                owner, _, name = path.rpartition(".")
                setattr(layer.get_submodule(owner), name, QuantizedLinear(module.weight, scheme))


def announce(scheme: Scheme, device: torch.device) -> None:
    """Say once what the products with a quantised base are made by."""
    logger.info("base in %s on %s: %s", scheme, device.type, _PRODUCTS[scheme])


def check_device(scheme: Scheme | None, device: torch.device) -> None:
    """Whether a device multiplies what a base is rounded to.

    Raises:
        StepError: If it is a GPU without fp8 (65): float32 in its place would be slower than no quantisation.
    """
    if scheme != "fp8" or device.type != "cuda" or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY:
        return
    raise StepError(
        f"`model.quantize: fp8` needs a GPU that multiplies 8-bit floats (compute capability "
        f"{'.'.join(map(str, FP8_CAPABILITY))} or later), which {torch.cuda.get_device_name(device)} is not",
        help="write `quantize: int8`, which saves as much memory, or take an H100, H200, L40S, L4 or RTX 4090",
    )
