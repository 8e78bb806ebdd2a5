"""Whether ways of training that differ in speed come to the same losses, on codes that can be learned.

Samples are short, two a step, and the learning rate is ten times as high, so that the loss comes a long way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from higgsc.train.decoder.quantized import Scheme
from higgsc.train.model.quantize import quantize_base
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, Sequence, build_sequence
from training import ours, stock
from training.samples import Shape, samples

LEARNING_RATE = 2e-3
COMPILED = "higgsc, compiled"


def parity(device: torch.device, shape: Shape, steps: int, compile_layers: Callable[[Any], None] | None) -> Any:
    """The losses of stock and higgsc over that many steps in float32; of higgsc compiled too, if it is said how."""

    def model() -> Any:
        return stock.adapted(shape.model(device=device, dtype=torch.float32), shape.rank)

    batches = _learnable(shape, steps)
    losses = {"stock": _by_stock(model(), batches), "higgsc": _by_ours(model(), batches)}
    if compile_layers is not None:
        losses[COMPILED] = _by_ours(model(), batches, compile_layers)
    differences = {name: _difference(losses["stock"], of) for name, of in losses.items() if name != "stock"}
    return {"steps": steps, "losses": losses, "largest_relative_difference": differences}


def rounded_parity(device: torch.device, shape: Shape, steps: int, scheme: Scheme) -> dict[str, Any]:
    """The same for higgsc on a quantised base and on the base as it is; on a GPU in bfloat16, as fp8 needs there."""
    batches, losses = _learnable(shape, steps), []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for rounds in (False, True):
        model = stock.adapted(shape.model(device=device, dtype=dtype), shape.rank)
        if rounds:
            quantize_base(model.get_base_model(), scheme)
        losses.append(_by_ours(model, batches))
    difference = _difference(*losses)
    return {"steps": steps, "scheme": scheme, "losses": losses, "largest_relative_difference": difference}


def _difference(base: list[float], losses: list[float]) -> float:
    return float(np.abs(np.array(losses) / np.array(base) - 1).max())


def _learnable(shape: Shape, steps: int) -> list[list[Sequence]]:
    tokens = AudioTokens.of(shape.config())
    made = samples(shape, 2 * steps, median=1, learnable=True, seed=2)
    sequences = [build_sequence(sample, tokens) for sample in made]
    return [sequences[start : start + 2] for start in range(0, len(sequences), 2)]


def _by_stock(model: Any, batches: list[list[Sequence]]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        options = {"learning_rate": LEARNING_RATE, "checkpointing": False, "bf16": False, "folder": folder}
        return stock.train(model, batches, **options)[1]


def _by_ours(
    model: Any, batches: list[list[Sequence]], compile_layers: Callable[[Any], None] | None = None
) -> list[float]:
    bf16 = next(model.parameters()).dtype == torch.bfloat16
    return ours.train(model, batches, pack, learning_rate=LEARNING_RATE, bf16=bf16, prepare=compile_layers)[1]
