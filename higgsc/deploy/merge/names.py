"""Whose names a merged model's tensors have: transformers', or those of the original release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from higgsc.catalog.original_names import to_original, to_transformers
from higgsc.contract.outcome import StepError
from higgsc.deploy.weights import Weights

Layout = Literal["transformers", "original"]


def check_layout(weights: Weights, layout: Layout) -> None:
    """Whether a base can be written in a layout.

    Raises:
        StepError: One of its tensors has no name there (65).
    """
    if layout == "original":
        for name in weights.tensors:
            if to_original(name) is None:
                raise StepError(f"tensor {name!r} has no counterpart in the original release", path=weights.folder)


def names_in(layout: Layout) -> Callable[[str], str]:
    """A tensor's name in a layout, from transformers' name."""
    return (lambda name: name) if layout == "transformers" else lambda name: _known(to_original(name))


def renamed(weights: Weights, layout: Layout) -> Weights:
    """The weights of a folder in a layout, by transformers' names."""
    if layout == "transformers":
        return weights
    infos = (replace(info, name=_known(to_transformers(info.name))) for info in weights.tensors.values())
    return replace(weights, tensors={info.name: info for info in infos})


def _known(name: str | None) -> str:
    assert name is not None, "`check_layout` has looked at all of them"
    return name
