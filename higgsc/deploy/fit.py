"""Whether an adapter belongs to a base: each of its tensors has a weight there, of the shape that it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from higgsc.catalog.higgs_audio_v2 import shape_of
from higgsc.catalog.original_names import to_transformers
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.weights import Weights, open_weights
from higgsc.train.model.adapter import Adapter, tensor_shapes
from higgsc.train.model.builtin import resolve_base


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """The weights of a base by name."""

    of: str
    """Where the shapes come from, for people: `the base at /models/higgs`."""
    shapes: Mapping[str, tuple[int, ...]]


def known_shapes(named: str | None, given: Path | None, *, root: Path) -> BaseShapes:
    """Shapes from the headers of a base in a folder, or those that the catalog computes.

    Args:
        named: What an adapter says it was trained on; a hub id, or a folder that may not be here.
        given: The folder to compare with instead, or `builtin:tiny`.
        root: What `named` may be relative to.

    Raises:
        StepError: If there is no base in `given` (66), or a base that is here is damaged (65).
    """
    folder = Path(resolve_base(str(given or named or ""), root=root))
    if given is not None and not folder.is_dir():
        raise StepError("there is no such folder", code=ExitCode.MISSING_INPUT, path=given)
    if folder.is_dir() and (given or named):
        return shapes_in(open_weights(folder))
    here = f" (`{named}` is no folder here)" if named else ""
    return BaseShapes(f"the released model as the catalog describes it{here}", shape_of(named or "").parameters())


def shapes_in(weights: Weights) -> BaseShapes:
    """Shapes from the headers of a base."""
    return BaseShapes(f"the base at {weights.folder}", {name: info.shape for name, info in weights.tensors.items()})


def check_fit(adapter: Adapter, weights: Weights) -> None:
    """Compare what an adapter changes with what there is.

    Raises:
        StepError: The base lacks a tensor, or has another shape, naming file and tensor (65).
    """
    if (misfit := next(misfits(adapter, shapes_in(weights)), None)) is not None:
        raise misfit


def misfits(adapter: Adapter, base: BaseShapes) -> Iterator[StepError]:
    """Each tensor of an adapter that has no counterpart in the base, or one of another shape."""
    path = adapter.weights_path
    for name, layer in adapter.layers.items():
        shape = base.shapes.get(name)
        if shape is None:
            yield StepError(
                f"tensor {layer.key_a!r} adapts `{layer.module}`, which {base.of} does not have",
                path=path,
                help=_way_out(name, adapter),
            )
        elif shape != layer.shape:
            yield StepError(
                f"tensors {layer.key_a!r} and {layer.key_b!r} make a change of shape {list(layer.shape)}, "
                f"but `{name}` of {base.of} has {list(shape)}",
                path=path,
                help=_OTHER_SIZE,
            )
    stored = tensor_shapes(path) if adapter.full else {}
    for name, key in adapter.full.items():
        shape = base.shapes.get(name)
        if shape is None:
            yield StepError(
                f"tensor {key!r} replaces `{name}`, which {base.of} does not have",
                path=path,
                help=_way_out(name, adapter),
            )
        elif stored[key] != shape:
            yield StepError(
                f"tensor {key!r} has shape {list(stored[key])}, but `{name}` of {base.of} has {list(shape)}",
                path=path,
                help=_OTHER_SIZE,
            )


def check_mergeable(adapter: Adapter) -> None:
    """Refuse an adapter that no base can hold.

    Raises:
        StepError: It was trained with a Whisper (65).
    """
    if adapter.listener is None:
        return
    raise StepError(
        f"the adapter was trained with the Whisper {adapter.listener}, which no merged model has: what it hears of the "
        "reference is added to the base's inputs, and not to its weights",
        path=adapter.projector_path,
        help="use it unmerged: `higgsc generate --adapter`, `higgsc serve --adapter` and `higgsc evaluate` do",
    )


_OTHER_SIZE = "the adapter was trained on a base of another size"


def _way_out(name: str, adapter: Adapter) -> str:
    if to_transformers(name) is None:
        return "the adapter was trained on another model"
    return (
        "that is a name of the original release; "
        f"`higgsc checkpoint convert {adapter.folder} -o OUT` gives the adapter transformers' names"
    )
