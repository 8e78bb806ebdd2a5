"""Where a model's files are on this machine, and how they are stored."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from higgsc.contract.jobs import ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line
from higgsc.deploy.weights import INDEX_FILE, SINGLE_FILE
from higgsc.train.model.builtin import resolve_base


def base_folder(base: str, revision: str | None, *, root: Path) -> Path:
    """The folder of a base: a folder below the project root or as named, `builtin:tiny`, or a hub id.

    From the hub only what transformers would load is fetched, as the released repository holds its weights
    twice, in one file and sharded.

    Raises:
        StepError: If it is none of these, or the hub cannot be reached and the cache does not hold it (66).
    """
    folder = Path(resolve_base(base, root=root))
    if folder.is_dir():
        return folder
    try:
        described = ["*.json", "*.jinja", "*.txt", "LICENSE*"]
        snapshot = Path(snapshot_download(base, revision=revision, allow_patterns=[*described, SINGLE_FILE]))
        if not (snapshot / SINGLE_FILE).is_file() and (snapshot / INDEX_FILE).is_file():
            shards = sorted(set(json.loads((snapshot / INDEX_FILE).read_text("utf-8"))["weight_map"].values()))
            snapshot = Path(snapshot_download(base, revision=revision, allow_patterns=shards))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = "" if revision is None else f" at revision {revision}"
        raise StepError(
            f"`{base}`{at} is no folder here, and the hub does not give it: {first_line(error)}",
            code=ExitCode.MISSING_INPUT,
            help="name a folder, `builtin:tiny`, or a hub id that this machine can reach or has in its cache",
        ) from error
    return snapshot


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
        raise StepError(
            "there is no model here", code=ExitCode.MISSING_INPUT, path=folder, help="run the merge step first"
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
