"""How a model's folder is stored, and how it is named to the trainer's loader."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from higgsc.contract.jobs import ModelRef
from higgsc.contract.outcome import ExitCode, StepError


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that a model's configuration says its weights are stored in.

    Raises:
        StepError: There is no model in the folder (66), or it does not say (65).
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        name = config.get("dtype", config.get("torch_dtype"))  # its name before transformers 4.56
    except FileNotFoundError as error:
        merged = folder / "merged"
        raise StepError(
            "there is no model here",
            code=ExitCode.MISSING_INPUT,
            path=folder,
            help=f"this is a run: name {merged}" if (merged / "config.json").is_file() else "run the merge step first",
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise StepError(f"not a model's configuration: {error}", path=path) from error
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    if name not in dtypes:
        raise StepError(f"`dtype` is {name!r}, not one of {', '.join(dtypes)}", path=path)
    return dtypes[name]


def folder_ref(folder: Path, *, audio_tokenizer: str = "") -> ModelRef:
    """A model reference to a folder, for loading it with the trainer's strict loader."""
    return ModelRef(
        base=str(folder.resolve()), revision=None, audio_tokenizer=audio_tokenizer, audio_tokenizer_revision=None
    )
