"""A merged model's folder, quantised in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from higgsc.deploy.quantize.difference import Difference, difference
from higgsc.deploy.quantize.files import Sizes, open_quantized, write_quantized
from higgsc.deploy.quantize.scheme import KEPT, Scheme, load_config
from higgsc.deploy.weights import Weights

DRAFT = ".quantized"
"""Folder inside the partial one; what is in it is of no use to a merge that goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What quantising did; part of `merge.json`."""

    scheme: Scheme
    torchao: str
    """Its version."""
    difference: Difference
    sizes: Sizes
    not_quantized: tuple[str, ...]
    """Modules with a matrix that was left as it was."""
    errors: Mapping[str, float]
    """Of each quantised tensor: Frobenius norm of the error, relative to that of the tensor."""

    @property
    def largest_error(self) -> float:
        """The largest of the tensors' errors."""
        return max(self.errors.values())

    @property
    def words(self) -> str:
        """For people, in a line."""
        before, after = self.sizes.quantized_before, self.sizes.quantized_after
        return (
            f"{len(self.errors)} linear weights in {self.scheme}: {before / 1e6:,.1f} → {after / 1e6:,.1f} MB "
            f"({after / before:.0%}), {self.sizes.rest / 1e6:,.1f} MB as they were; "
            f"a weight is off by up to {self.largest_error:.2%} of its norm"
        )


def quantize_draft(
    weights: Weights,
    config: Mapping[str, Any],
    scheme: Scheme,
    *,
    store: Path | None,
    device: torch.device,
    reached: Callable[[str], None],
) -> Quantization:
    """Write the quantised files into a folder inside the merged model's, and measure what they change.

    Args:
        weights: Of the merged model, by transformers' names.
        config: Of the model.
        scheme: How.
        store: See `difference`.
        device: Where to measure.
        reached: Told the name of each tensor as it is reached.

    Raises:
        StepError: See `difference`.
    """
    draft = weights.folder / DRAFT
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir()
    errors, sizes = write_quantized(weights, draft, scheme, reached=reached)
    quantized = open_quantized(draft, weights, scheme)
    return Quantization(
        scheme=scheme,
        torchao=version("torchao"),
        difference=difference(config, weights, quantized, store=store, device=device),
        sizes=sizes,
        not_quantized=KEPT,
        errors=dict(sorted(errors.items())),
    )


def put_in_place(folder: Path, scheme: Scheme) -> None:
    """Replace the merged model's weights by the quantised ones, and say in its configuration how they load.

    Must not be interrupted in the middle: the folder has to be one that is thrown away then.
    """
    for path in (folder / DRAFT).iterdir():
        path.replace(folder / path.name)
    (folder / DRAFT).rmdir()
    path = folder / "config.json"
    config = {**json.loads(path.read_text("utf-8")), "quantization_config": load_config(scheme)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
