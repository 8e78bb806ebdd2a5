"""A LoRA adapter in PEFT's format, read strictly: what cannot be merged exactly is refused by name.

PEFT stores `adapter_config.json` and `adapter_model.safetensors`. A target module `m` of the base has two
tensors, `base_model.model.<m>.lora_A.weight` [rank, in] and `base_model.model.<m>.lora_B.weight` [out, rank],
and stands for `W + scale * B @ A`. The scale is alpha / rank, or alpha / sqrt(rank) with rsLoRA
(https://arxiv.org/abs/2312.03732); `rank_pattern` and `alpha_pattern` override both per module. With DoRA
(https://arxiv.org/abs/2402.09353) a third tensor, `lora_magnitude_vector` [out], holds the lengths to which the rows
of the sum are scaled. A module in `modules_to_save` has one, `base_model.model.<m>.weight`, which takes W's place.

An adapter that listens with a Whisper has one more file, see `projector.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from higgsc.catalog.adapter import value_of
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.listener import Listener
from higgsc.train.model.adapter_config import CONFIG_FILE, config_problems, read_config

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
"""How PEFT stored weights before it used safetensors, and other trainers still do."""
PROJECTOR_FILE = "whisper.safetensors"
PROJECTOR = "base_model.model.model.whisper.weight"
"""The tensor in it."""

PREFIX = "base_model.model."
"""Before the path of every module: PEFT's model, and what it wraps."""
HALVES = (".lora_A.weight", ".lora_B.weight")
MAGNITUDE = ".lora_magnitude_vector"


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The adapter of one linear layer: `scale * B @ A` is added to the weight, and with DoRA the rows are scaled."""

    module: str
    """Path in the base model, such as `model.layers.0.self_attn.q_proj`."""
    key_a: str
    """Name of the tensor [rank, in] in the adapter's file."""
    key_b: str
    """Name of the tensor [out, rank]."""
    key_magnitude: str | None
    """Name of the tensor [out]; None without DoRA."""
    shape: tuple[int, int]
    """Shape of the weight it adds to: (out, in)."""
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on disk; `open_adapter` makes one."""

    folder: Path
    layers: Mapping[str, LoraLayer]
    """By the name of the base's weight, such as `model.layers.0.self_attn.q_proj.weight`."""
    full: Mapping[str, str]
    """Weights that were trained whole: their name in the base to that in the adapter's file."""
    base: str | None
    """What it was trained on, if it says."""
    revision: str | None
    listener: Listener | None = None
    """The Whisper that it was trained with, if with one; its projector is in `projector_path`."""

    @property
    def weights_path(self) -> Path:
        return self.folder / WEIGHTS_FILE

    @property
    def projector_path(self) -> Path:
        return self.folder / PROJECTOR_FILE

    def changes(self, name: str) -> bool:
        """Whether it changes a weight of the base."""
        return name in self.layers or name in self.full


def open_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration and the shapes of its tensors.

    Raises:
        StepError: A file is missing (66); or damaged, or the adapter is of a kind that has no exact merge into
            linear layers (65).
    """
    adapter, problems = read_adapter(folder)
    if problems:
        raise problems[0]
    assert adapter is not None, "what cannot be read has a problem"
    return adapter


def read_adapter(folder: Path) -> tuple[Adapter | None, list[StepError]]:
    """As `open_adapter`, but with everything that is wrong rather than the first.

    Returns:
        What could be read of it, None if one of the two files could not; and the problems.
    """
    if not (folder / CONFIG_FILE).is_file() and (folder / "config.json").is_file():
        whole = StepError(
            "this is a whole model, not an adapter: there is nothing to merge",
            path=folder,
            help=f"use it as it is: `higgsc generate --model {folder}`",
        )
        return None, [whole]
    try:
        config = read_config(folder)
    except StepError as problem:
        return None, [problem]
    problems = list(config_problems(config, folder / CONFIG_FILE))
    if config.get("peft_type") != "LORA":
        return None, problems
    path = folder / WEIGHTS_FILE
    try:
        shapes = tensor_shapes(path)
    except StepError as problem:
        return None, [*problems, problem]
    layers: dict[str, LoraLayer] = {}
    full: dict[str, str] = {}
    done: set[str] = set()
    for key in shapes:
        stem = next((key.removesuffix(end) for end in (*HALVES, MAGNITUDE) if key.endswith(end)), None)
        if key.startswith(PREFIX) and stem is not None:
            if stem not in done:
                done.add(stem)
                module = stem.removeprefix(PREFIX)
                try:
                    layers[f"{module}.weight"] = _layer(module, stem, shapes, config, path)
                except StepError as problem:
                    problems.append(problem)
        elif _trained_whole(key, config):
            full[key.removeprefix(PREFIX)] = key
        else:
            problems.append(
                StepError(
                    f"tensor {key!r} is not the A or B matrix of a linear layer, and no module of `modules_to_save`",
                    path=path,
                )
            )
    if not layers and not problems:
        problems.append(StepError("the adapter holds no tensors", path=path))
    listener: Listener | None = None
    try:
        listener = _listener(folder, config)
    except StepError as problem:
        problems.append(problem)
    adapter = Adapter(
        folder=folder,
        layers=layers,
        full=full,
        base=config.get("base_model_name_or_path"),
        revision=config.get("revision"),
        listener=listener,
    )
    return adapter, problems


def _layer(
    module: str, prefix: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], path: Path
) -> LoraLayer:
    keys = [f"{prefix}{end}" for end in HALVES]
    for key in keys:
        if key not in shapes:
            raise StepError(f"tensor {key!r} is missing, while its other half is there", path=path)
        if len(shapes[key]) != 2:
            raise StepError(f"tensor {key!r} has shape {list(shapes[key])}, not two dimensions", path=path)
    rank = value_of(config.get("rank_pattern") or {}, module, config["r"])
    alpha = value_of(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    (rank_a, columns), (rows, rank_b) = (shapes[key] for key in keys)
    for key, found in zip(keys, (rank_a, rank_b), strict=True):
        if found != rank:
            raise StepError(
                f"tensor {key!r} has shape {list(shapes[key])}, but {CONFIG_FILE} gives the layer rank {rank:g}",
                path=path,
            )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    magnitude = f"{prefix}{MAGNITUDE}"
    if (magnitude in shapes) != bool(config.get("use_dora")):
        there = "is there" if magnitude in shapes else "is missing"
        raise StepError(f"tensor {magnitude!r} {there}, but `use_dora` is {bool(config.get('use_dora'))}", path=path)
    if shapes.get(magnitude, (rows,)) != (rows,):
        raise StepError(f"tensor {magnitude!r} has shape {list(shapes[magnitude])}, not {[rows]}", path=path)
    return LoraLayer(
        module=module,
        key_a=keys[0],
        key_b=keys[1],
        key_magnitude=magnitude if config.get("use_dora") else None,
        shape=(rows, columns),
        rank=rank_a,
        scale=scale,
    )


def _listener(folder: Path, config: Mapping[str, Any]) -> Listener | None:
    """The Whisper that an adapter was trained with; without its projector it is another adapter, so none is refused."""
    path, named = folder / PROJECTOR_FILE, config.get("whisper")
    if named is None:
        if path.is_file():
            raise StepError(f"{CONFIG_FILE} beside it does not say which Whisper this projector is for", path=path)
        return None
    try:
        listener = Listener.model_validate(named)
    except ValidationError as error:
        raise StepError("`whisper` does not say which Whisper it is", path=folder / CONFIG_FILE) from error
    if not path.is_file():
        raise StepError(
            f"the adapter listens with the Whisper {listener}, and its projector is missing",
            code=ExitCode.MISSING_INPUT,
            path=path,
            help="copy it from the checkpoint too: it lies beside adapter_model.safetensors",
        )
    shapes = tensor_shapes(path)
    shape = shapes.get(PROJECTOR, ())
    if len(shapes) != 1 or len(shape) != 2 or shape[1] != listener.width:
        raise StepError(
            f"holds {', '.join(f'{name!r} {list(size)}' for name, size in shapes.items()) or 'nothing'}, and should "
            f"hold {PROJECTOR!r} [hidden size, {listener.width}]",
            path=path,
        )
    return listener


def _trained_whole(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is the weight of a module in `modules_to_save`, which are suffixes of paths."""
    modules = tuple(config.get("modules_to_save") or ())
    return key.startswith(PREFIX) and key.endswith(tuple(f"{module}.weight" for module in modules))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an adapter's weights, from the file's header.

    Raises:
        StepError: The file is missing (66) or damaged (65).
    """
    if not path.is_file():
        pickled = path.with_name(PICKLED_FILE).is_file()
        raise StepError(
            f"the adapter's weights are pickled ({PICKLED_FILE}), which can run code when read"
            if pickled
            else "the adapter's weights are missing",
            code=ExitCode.MISSING_INPUT,
            path=path,
            help=f"`higgsc checkpoint convert {path.parent} -o OUT` reads them without running anything"
            if pickled
            else "an adapter folder holds adapter_config.json and adapter_model.safetensors",
        )
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StepError(
            f"the adapter's weights are damaged: {error}",
            path=path,
            help="restore the file, or pick another checkpoint",
        ) from error


def read_projector(adapter: Adapter) -> torch.Tensor:
    """The projector's weight of an adapter that has one, float32 `[hidden size, width]`.

    Raises:
        StepError: It holds a value that is not finite (65).
    """
    return _read(adapter.projector_path, PROJECTOR)[0]


def read_tensors(adapter: Adapter, *keys: str) -> list[torch.Tensor]:
    """Tensors of the adapter's file, in float32.

    Raises:
        StepError: One of them holds a value that is not finite (65).
    """
    return _read(adapter.weights_path, *keys)


def _read(path: Path, *keys: str) -> list[torch.Tensor]:
    found = []
    with safe_open(path, "pt") as file:
        for key in keys:
            tensor: torch.Tensor = file.get_tensor(key).float()
            # A sum is quick, and finite only if all are; it may itself overflow.
            if not (math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())):
                raise StepError(
                    f"tensor {key!r} holds values that are not finite",
                    path=path,
                    help="the training diverged or the file is damaged; pick an earlier checkpoint",
                )
            found.append(tensor)
    return found
