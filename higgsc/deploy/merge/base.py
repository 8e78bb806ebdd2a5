"""Whether a base can be merged into: its configuration and its weights, before anything is written."""

from __future__ import annotations

import json
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.streamed import empty_model
from higgsc.deploy.weights import Weights
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
    if config.get("quantization_config") is not None:
        raise StepError(
            "the base is quantised, so that an adapter has no exact merge with it",
            path=path,
            help="merge into the base that it was made from, and quantise the result",
        )
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
