"""A model's folder in transformers' format: where it is on this machine, and what lies beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.loading import first_line
from higgsc.train.model.builtin import resolve_base

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
"""Configuration, generation configuration, tokenizer, chat template and processor; also the licence."""
_OURS = frozenset(
    {
        INDEX_FILE, "merge.json", "manifest.json", "metrics.json", "progress.json", "job.json",
        "optimizer.safetensors.index.json",
    }
)  # fmt: skip
"""What describes one model, and not one that is made from it."""


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


def copy_companions(base: Path, folder: Path, dtype: torch.dtype) -> None:
    """Copy everything beside the weights of a model; the configuration then says in which dtype to load them.

    Raises:
        StepError: If the model has no configuration (66), or it is not JSON (65).
    """
    for pattern in _COPIED:
        for path in sorted(base.glob(pattern)):
            if path.is_file() and path.name not in _OURS:
                shutil.copyfile(path, folder / path.name)
    path = folder / "config.json"
    if not path.is_file():
        raise StepError("the base has no config.json", code=ExitCode.MISSING_INPUT, path=base)
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise StepError(f"the base's configuration is not JSON: {error}", path=base / "config.json") from error
    config.pop("torch_dtype", None)  # the name of `dtype` before transformers 4.56
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
