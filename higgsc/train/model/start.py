"""Starting from an adapter that is there, instead of a fresh one."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from higgsc.contract.jobs import ModelRef
from higgsc.contract.outcome import StepError
from higgsc.train.model.adapter import Adapter, open_adapter
from higgsc.train.model.adapter_config import CONFIG_FILE
from higgsc.train.model.build import adapter_parameters, names_in_file
from higgsc.train.model.projector import is_projector, listener_of

logger = logging.getLogger(__name__)

_NAMED = 3


@torch.no_grad()
def start_from(folder: Path, model: PeftModel, ref: ModelRef) -> None:
    """Copy the weights of an adapter on disk into a model's fresh one, before it is sharded.

    Args:
        folder: In PEFT's format, whoever wrote it.
        model: Has an adapter of the same modules, ranks, scaling and kind.
        ref: The base; that the adapter names another one is only a warning, since a base has many names.

    Raises:
        StepError: If a file is missing (66) or damaged, or the adapter differs, naming module and value (65).
    """
    adapter = open_adapter(folder)
    differences = list(_differences(adapter, model))
    if differences:
        named = "; ".join(differences[:_NAMED])
        more = f"; and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise StepError(
            f"the adapter to start from is not the one that the spec describes: {named}{more}",
            path=folder / CONFIG_FILE,
            help="give `lora` the values of the adapter, which that file names, or leave out `lora.start`",
        )
    here = listener_of(model)
    if adapter.listener is not None and (here is None or here.fingerprint != adapter.listener.fingerprint):
        who = "the training listens with none" if here is None else f"the training listens with {here}"
        raise StepError(
            f"the adapter to start from was trained with the Whisper {adapter.listener}, and {who}",
            path=folder / CONFIG_FILE,
            help=f"write `whisper: {{encoder: {adapter.listener.encoder}}}` in `model`, or leave out `lora.start`",
        )
    if (adapter.base, adapter.revision) != (ref.base, ref.revision):
        logger.warning(
            "the adapter to start from was trained on `%s` at revision %s; here the base is `%s` at revision %s",
            adapter.base, adapter.revision, ref.base, ref.revision,
        )  # fmt: skip
    parameters = adapter_parameters(model)
    tensors = load_file(adapter.weights_path)
    if adapter.listener is not None:
        tensors |= load_file(adapter.projector_path)
    elif here is not None:
        logger.info("the adapter to start from listens with no Whisper; the projector starts at zero")
    for name, in_file in names_in_file(model, parameters).items():
        if is_projector(name) and adapter.listener is None:
            continue
        found = tensors[in_file]
        if found.shape != parameters[name].shape or not bool(torch.isfinite(found).all()):
            what = "holds values that are not finite" if found.shape == parameters[name].shape else "has"
            shape = "" if "finite" in what else f" shape {list(found.shape)}, not {list(parameters[name].shape)}"
            raise StepError(f"tensor {in_file!r} {what}{shape}", path=adapter.weights_path)
        parameters[name].copy_(found)
    logger.info("starting from the adapter in %s", folder)


def _differences(adapter: Adapter, model: PeftModel) -> list[str]:
    """What the adapter on disk has and the model's has not, in words: `<module>: rank 8 instead of 16`."""
    prefix = "base_model.model."
    here = {
        name.removeprefix(prefix): module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    there = {layer.module: layer for layer in adapter.layers.values()}
    found = [f"`{name}` gets an adapter here and has none there" for name in here if name not in there]
    found += [f"`{name}` has an adapter there and gets none here" for name in there if name not in here]
    for name in here.keys() & there.keys():
        module, layer = here[name], there[name]
        if layer.rank != module.r["default"]:
            found.append(f"`{name}`: rank {layer.rank} instead of {module.r['default']}")
        elif not math.isclose(layer.scale, module.scaling["default"]):
            found.append(f"`{name}`: scaled by {layer.scale:g} instead of {module.scaling['default']:g}")
        elif (layer.key_magnitude is not None) != bool(module.lora_magnitude_vector):
            found.append(f"`{name}`: {'with' if layer.key_magnitude else 'without'} DoRA")
    full = {name.removesuffix(".weight") for name in adapter.full}
    wanted = set(model.peft_config["default"].modules_to_save or ())
    found += [f"`{name}` is trained whole here and not there" for name in sorted(wanted - full)]
    found += [f"`{name}` is trained whole there and not here" for name in sorted(full - wanted)]
    return sorted(found)
