"""Whether an adapter belongs to a base: names and shapes, before anything is written."""

from __future__ import annotations

import json
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.merge.streamed import empty_model
from higgsc.deploy.weights import Weights
from higgsc.train.model.adapter import Adapter, read_tensors
from higgsc.train.model.build import check_model_type


def check_base(weights: Weights) -> dict[str, Any]:
    """Compare a base's weights with its configuration, which is returned.

    Raises:
        StepError: There is no configuration (66), it is damaged or of another kind of model, or a weight is missing,
            unknown or of another shape (65).
    """
    path = weights.folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise StepError("the base has no config.json", code=ExitCode.MISSING_INPUT, path=weights.folder) from error
    except ValueError as error:
        raise StepError(f"the base's configuration is not JSON: {error}", path=path) from error
    check_model_type(str(weights.folder), config.get("model_type"))
    shapes = {name: tuple(parameter.shape) for name, parameter in empty_model(config).named_parameters()}
    for name in sorted(shapes.keys() | weights.tensors.keys()):
        there = weights.tensors[name].shape if name in weights.tensors else None
        if shapes.get(name) != there:
            has = "is missing" if there is None else f"has shape {list(there)}"
            wants = f"{list(shapes[name])}" if name in shapes else "no such tensor"
            raise StepError(
                f"the base does not fit its configuration: {name} {has}, the model has {wants}",
                path=weights.folder,
                help="it must hold every weight of transformers' HiggsAudioV2ForConditionalGeneration, text head too",
            )
    return config


def check_fit(adapter: Adapter, weights: Weights) -> None:
    """Compare what an adapter changes with what there is.

    Raises:
        StepError: The base lacks a tensor, or has another shape, naming file and tensor (65).
    """
    for name, layer in adapter.layers.items():
        info = weights.tensors.get(name)
        if info is None:
            raise StepError(
                f"tensor {layer.key_a!r} adapts `{layer.module}`, which the base at {weights.folder} does not have",
                path=adapter.weights_path,
                help="the adapter was trained on another model, or on the original implementation's names",
            )
        if info.shape != layer.shape:
            raise StepError(
                f"tensors {layer.key_a!r} and {layer.key_b!r} make a change of shape {list(layer.shape)}, "
                f"but `{name}` in {weights.folder / info.file} has {list(info.shape)}",
                path=adapter.weights_path,
                help="the adapter was trained on a base of another size",
            )
    for name, key in adapter.full.items():
        if name not in weights.tensors:
            raise StepError(
                f"tensor {key!r} replaces `{name}`, which the base at {weights.folder} does not have",
                path=adapter.weights_path,
                help="the adapter was trained on another model",
            )
        info, (tensor,) = weights.tensors[name], read_tensors(adapter, key)
        if tuple(tensor.shape) != info.shape:
            raise StepError(
                f"tensor {key!r} has shape {list(tensor.shape)}, but `{name}` in {weights.folder / info.file} has "
                f"{list(info.shape)}",
                path=adapter.weights_path,
                help="the adapter was trained on a base of another size",
            )
