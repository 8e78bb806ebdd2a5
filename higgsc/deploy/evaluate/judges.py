"""What the models that measure have in common: where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line

_EXAMPLES = {"whisper": "openai/whisper-large-v3", "wavlm": "microsoft/wavlm-base-plus-sv"}


def judge_config(name: str, option: str, model_type: str, *, root: Path) -> tuple[str, Any]:
    """Where a model that measures is, and its configuration; nothing large is read yet.

    Args:
        name: A folder below the project root or as named, or a hub id.
        option: The key of `evaluate` that names it.
        model_type: What it has to be.
        root: The project root.

    Raises:
        StepError: It is not there (66), or is another kind of model (65).
    """
    place = str(root / name) if (root / name).is_dir() else name
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise StepError(
            f"cannot load `evaluate.{option}: {name}`: {first_line(error)}",
            code=ExitCode.MISSING_INPUT,
            help="name a folder, or a hub id that this machine can reach or has in its cache",
        ) from error
    if config.model_type != model_type:
        raise StepError(
            f"`evaluate.{option}: {name}` is a model of type `{config.model_type}`, not `{model_type}`",
            help=f"name one such as `{_EXAMPLES[model_type]}`",
        )
    return place, config


def cannot_load(name: str, option: str, error: Exception) -> StepError:
    """The error of a model whose weights or processor cannot be read."""
    return StepError(
        f"cannot load `evaluate.{option}: {name}`: {first_line(error)}",
        code=ExitCode.MISSING_INPUT,
        help="the folder holds the model's weights, config.json, and what its processor needs, as on the hub",
    )
