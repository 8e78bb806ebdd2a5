"""Adapters of other trainers as this one writes them: safetensors, PEFT's names, transformers' modules.

What changes is how the adapter is written down, never a number: modules of the original release get the names that
transformers gives them, `default` is left out of the tensors' names, and the configuration names every module, with its
rank and alpha.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from re import escape
from typing import Any, Final

from safetensors.torch import load_file
from torch import Tensor

import higgsc
from higgsc.catalog.adapter import value_of
from higgsc.catalog.original_names import to_original, to_transformers
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file
from higgsc.deploy.fit import check_mergeable
from higgsc.deploy.inspect.names import name_in_file, split
from higgsc.deploy.inspect.pickled import read_pickled
from higgsc.train.checkpoints.checkpoint import write_tensors
from higgsc.train.model.adapter import HALVES, PICKLED_FILE, PREFIX, WEIGHTS_FILE, open_adapter, tensor_shapes
from higgsc.train.model.adapter_config import CONFIG_FILE, config_problems, read_config

RECORD_FILE: Final = "conversion.json"
RECORD_SCHEMA: Final = "higgsc.conversion/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a conversion did; also in the new folder, as `conversion.json`."""

    source: str
    """File that held the weights."""
    source_sha256: str
    modules: int
    """With an adapter."""
    whole: int
    """Trained whole."""
    renamed: int
    """Modules that had names of the original release."""


def convert_adapter(folder: Path, out: Path) -> Conversion:
    """Write an adapter anew, as `higgsc merge` takes it; the folder appears only when `open_adapter` reads it.

    Args:
        folder: Holds `adapter_config.json`, and `adapter_model.safetensors` or `adapter_model.bin`.
        out: The folder to write. An earlier conversion there is replaced, nothing else.

    Raises:
        StepError: A file is missing (66); the weights are damaged, pickled with more than tensors, or of modules that
            Higgs Audio v2 does not have; the adapter is of a kind that cannot be merged exactly (65); `out` holds
            something else (2) or cannot be written (74).
    """
    if out.resolve() == folder.resolve():
        raise StepError("that is the adapter itself", code=ExitCode.USAGE, path=out, help="name another folder for -o")
    config = read_config(folder)
    if (problem := next(config_problems(config, folder / CONFIG_FILE), None)) is not None:
        raise problem
    if config.get("whisper") is not None:
        check_mergeable(open_adapter(folder))
    path = folder / WEIGHTS_FILE
    if not path.is_file() and (folder / PICKLED_FILE).is_file():
        path = folder / PICKLED_FILE
        tensors = read_pickled(path)
    else:
        tensor_shapes(path)  # says what is wrong with the file
        tensors = load_file(path)
    tensors = _in_file(tensors, path)
    modules = _modules(tensors, path)
    names = _names(dict.fromkeys(module for module, _ in modules.values()), path)
    # Copies: pickled tensors may be views of one memory, which a safetensors file cannot hold.
    renamed = {f"{PREFIX}{names[modules[name][0]]}{modules[name][1]}": t.clone() for name, t in tensors.items()}
    ranks = _ranks(tensors, config, path)
    if not ranks:
        raise StepError("the adapter has no A matrix", path=path)
    conversion = Conversion(
        source=str(path),
        source_sha256=sha256_file(path),
        modules=len(ranks),
        whole=len(names) - len(ranks),
        renamed=sum(old != new for old, new in names.items()),
    )
    with publish_folder(out, marker=RECORD_FILE) as draft:
        write_tensors(draft / WEIGHTS_FILE, renamed)
        text = json.dumps(_config(config, names, ranks), indent=2)
        (draft / CONFIG_FILE).write_text(text + "\n", "utf-8")
        record = {"schema": RECORD_SCHEMA, "higgsc": higgsc.__version__, **asdict(conversion)}
        (draft / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        open_adapter(draft)
    return conversion


def _in_file(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors by the names that PEFT gives them in a file."""
    found: dict[str, Tensor] = {}
    adapters = set()
    for name, tensor in tensors.items():
        stored, adapter = name_in_file(name)
        adapters |= {adapter} - {None}
        if stored in found or len(adapters) > 1:
            raise StepError(
                f"holds several adapters, {' and '.join(sorted(map(str, adapters)))}" if len(adapters) > 1
                else f"holds {stored!r} twice",
                path=path,
                help="save each into a folder of its own with PEFT's `save_pretrained(selected_adapters=[...])`",
            )  # fmt: skip
        found[stored] = tensor
    if not found:
        raise StepError("the adapter holds no tensors", path=path)
    return found


def _modules(tensors: Iterable[str], path: Path) -> dict[str, tuple[str, str]]:
    """The module that each tensor belongs to, and the end of its name."""
    found = {}
    for name in tensors:
        parts = split(name)
        if parts is None:
            raise StepError(f"tensor {name!r} is not the A or B matrix of a linear layer, nor a weight", path=path)
        found[name] = parts
    return found


def _names(modules: Iterable[str], path: Path) -> dict[str, str]:
    """What transformers calls each module.

    Raises:
        StepError: If Higgs Audio v2 does not have one of them under any name.
    """
    names = {module: to_transformers(module) or (module if to_original(module) else None) for module in modules}
    unknown = [module for module, name in names.items() if name is None]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise StepError(
            f"Higgs Audio v2 has no {', '.join(f'`{module}`' for module in unknown[:3])}{more}",
            path=path,
            help="the adapter was trained on another model, or on one to which modules had been added",
        )
    return {module: name for module, name in names.items() if name is not None}


def _ranks(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each module with an adapter, by its old name.

    Raises:
        StepError: If the configuration has another rank than the tensors: then its alpha cannot be trusted either.
    """
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(HALVES[0]):
            continue
        module = name.removeprefix(PREFIX).removesuffix(HALVES[0])
        rank = value_of(config.get("rank_pattern") or {}, module, config["r"])
        if tensor.dim() != 2 or tensor.shape[0] != rank:
            raise StepError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but {CONFIG_FILE} gives the layer rank {rank:g}",
                path=path,
                help="put back the configuration that the adapter was saved with",
            )
        found[module] = (int(rank), value_of(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
    return found


def _config(
    config: Mapping[str, Any], names: Mapping[str, str], ranks: Mapping[str, tuple[int, float]]
) -> dict[str, Any]:
    """The configuration with every module named; patterns are for those that differ from most."""
    rank = Counter(rank for rank, _ in ranks.values()).most_common(1)[0][0]
    alpha = Counter(alpha for _, alpha in ranks.values()).most_common(1)[0][0]
    changes = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(names[module] for module in ranks),
        "rank_pattern": {escape(names[m]): r for m, (r, _) in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {escape(names[m]): a for m, (_, a) in sorted(ranks.items()) if a != alpha},
        "modules_to_save": sorted(name for module, name in names.items() if module not in ranks) or None,
        "inference_mode": True,
        # The targets are named in full, so these have nothing left to choose, and are of the old names.
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        # The class that the adapter was made for, which transformers does not have.
        "auto_mapping": None,
    }
    return dict(sorted({**config, **changes}.items()))
