"""The configuration of a LoRA adapter in PEFT's format, `adapter_config.json`, read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError

CONFIG_FILE = "adapter_config.json"

_UNDERSTOOD = frozenset(
    {
        "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save",
        "init_lora_weights", "bias",
        # These say how the adapter was made or found, and change nothing about what it stands for.
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
        "eva_config", "megatron_core", "qalora_group_size", "runtime_config",
        "whisper",  # this project's own; what it says is checked apart
    }
)  # fmt: skip

_INITIALISATIONS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""The others (PiSSA, OLoRA, CorDA, LoftQ, ...) subtract the initial product from the base: W is not the base's."""


def read_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration; rank and alpha in it are numbers.

    Raises:
        StepError: It is missing (66), or not one of LoRA (65).
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StepError(
            f"cannot read the adapter's configuration: {error.strerror}",
            code=ExitCode.MISSING_INPUT,
            path=path,
            help="an adapter folder holds adapter_config.json and adapter_model.safetensors",
        ) from error
    except (ValueError, RecursionError) as error:
        raise StepError(f"the adapter's configuration is not JSON: {error}", path=path) from error
    if not isinstance(config, dict) or not all(
        isinstance(config.get(key), int | float) and config[key] > 0 for key in ("r", "lora_alpha")
    ):
        raise StepError("not a LoRA configuration: `r` and `lora_alpha` have to be positive numbers", path=path)
    for key in ("rank_pattern", "alpha_pattern"):
        if not _are_patterns(config.get(key) or {}):
            raise StepError(f"`{key}` is not a mapping of regular expressions to positive numbers", path=path)
    for key in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(key), str | None):
            raise StepError(f"`{key}` is {config[key]!r}, not a name", path=path)
    whole = config.get("modules_to_save") or []
    if not isinstance(whole, list) or not all(isinstance(module, str) for module in whole):
        raise StepError("`modules_to_save` is not a list of modules", path=path)
    targets = config.get("target_modules") or []
    if not isinstance(targets, str) and not (
        isinstance(targets, list) and all(isinstance(one, str) for one in targets)
    ):
        raise StepError("`target_modules` is neither a list of modules nor a pattern", path=path)
    return config


def _are_patterns(found: object) -> bool:
    if not isinstance(found, dict):
        return False
    try:
        return all(re.compile(pattern) and isinstance(n, int | float) and n > 0 for pattern, n in found.items())
    except re.error:
        return False


def config_problems(config: Mapping[str, Any], path: Path) -> Iterator[StepError]:
    """What in an adapter's configuration stands against an exact merge.

    Args:
        config: From `read_config`.
        path: The file that it was read from.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        yield StepError(f"`peft_type` is {kind!r}; only LORA can be merged", path=path)
        return
    if config.get("bias", "none") != "none":
        yield StepError(f"`bias` is {config['bias']!r}: trained biases are not merged", path=path)
    if config.get("init_lora_weights", True) not in _INITIALISATIONS_THAT_KEEP_THE_BASE:
        yield StepError(
            f"`init_lora_weights` is {config['init_lora_weights']!r}, which changed the base before training",
            path=path,
            help="convert it to a plain LoRA with PEFT's `path_initial_model_for_weight_conversion`",
        )
    for key, value in config.items():
        if key not in _UNDERSTOOD and value:
            yield StepError(
                f"`{key}` is {value!r}: an adapter that uses it cannot be merged exactly",
                path=path,
                help="LoRA on linear layers can be, with rsLoRA, DoRA, rank and alpha patterns, and modules to save",
            )
