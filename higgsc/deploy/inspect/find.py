"""Adapters in PEFT's format anywhere below a folder, whoever trained them, and whether `higgsc merge` takes them.

Links to folders are not followed, nor links of files that lead out of the folder: what is found lies there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from higgsc.catalog.original_names import to_original, to_transformers
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.fit import check_mergeable, known_shapes, misfits
from higgsc.deploy.inspect.names import name_in_file, split
from higgsc.deploy.inspect.pickled import read_pickled
from higgsc.train.model.adapter import PICKLED_FILE, WEIGHTS_FILE, read_adapter, tensor_shapes
from higgsc.train.model.adapter_config import CONFIG_FILE, read_config

MAX_DEPTH: Final = 12
"""Folders within folders that are looked into."""
MAX_FOLDERS: Final = 50_000

Names = Literal["transformers", "original release", "both", "neither"]

_FILES = (CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An adapter; what cannot be read of it is None."""

    path: Path
    """Its folder."""
    rank: float | None
    alpha: float | None
    targets: tuple[str, ...]
    """As its configuration has them."""
    base: str | None
    names: Names | None
    """Whose names its modules have."""
    format: Literal["safetensors", "pickle"] | None
    size: int
    """Bytes of the weights."""
    refusal: StepError | None
    """Why `higgsc merge` does not take it; None if it does."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        fields = {name: getattr(self, name) for name in Found.__slots__ if name != "refusal"}
        refused = self.refusal
        return fields | {
            "path": str(self.path),
            "merges": refused is None,
            "refusal": refused and refused.message,
            "help": refused and refused.help,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What lies below a folder."""

    folder: Path
    adapters: tuple[Found, ...]
    unreadable: tuple[Path, ...]
    """Folders that this user may not read."""
    cut_off: bool
    """Whether there are more folders, or deeper ones, than are looked into."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "folder": str(self.folder),
            "adapters": [found.document() for found in self.adapters],
            "unreadable": list(map(str, self.unreadable)),
            "cut_off": self.cut_off,
        }


def find_adapters(folder: Path) -> Search:
    """Look for adapters in a folder and below.

    Raises:
        StepError: If there is no such folder (66).
    """
    if not folder.is_dir():
        raise StepError("there is no such folder", code=ExitCode.MISSING_INPUT, path=folder)
    adapters, unreadable = [], []
    waiting, seen, cut_off = [(folder, 0)], 0, False
    while waiting:
        path, depth = waiting.pop()
        if (seen := seen + 1) > MAX_FOLDERS:
            cut_off = True
            break
        try:
            with os.scandir(path) as entries:
                here = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            unreadable.append(path)
            continue
        if any(entry.name in _FILES for entry in here):
            adapters.append(_look(path, folder))
        below = [Path(entry.path) for entry in here if entry.is_dir(follow_symlinks=False)]
        if depth == MAX_DEPTH:
            cut_off = cut_off or bool(below)
        else:
            waiting += [(path, depth + 1) for path in reversed(below)]
    return Search(folder=folder, adapters=tuple(adapters), unreadable=tuple(unreadable), cut_off=cut_off)


def _look(path: Path, root: Path) -> Found:
    """Describe the adapter in a folder."""
    refusal = next(_leading_out(path, root), None)
    if refusal is not None:
        return Found(
            path=path, rank=None, alpha=None, targets=(), base=None, names=None, format=None, size=0, refusal=refusal
        )
    weights = next((path / name for name in (WEIGHTS_FILE, PICKLED_FILE) if (path / name).is_file()), None)
    names: Names | None = None
    if weights is not None:
        try:
            names = _names(tensor_shapes(weights) if weights.name == WEIGHTS_FILE else read_pickled(weights))
        except StepError as problem:
            refusal = problem
    try:
        config = read_config(path)
    except StepError:  # `_refusal` says why
        config = {}
    targets = config.get("target_modules") or ()
    return Found(
        path=path,
        rank=config.get("r"),
        alpha=config.get("lora_alpha"),
        targets=(targets,) if isinstance(targets, str) else tuple(map(str, targets)),
        base=config.get("base_model_name_or_path"),
        names=names,
        format=None if weights is None else "safetensors" if weights.name == WEIGHTS_FILE else "pickle",
        size=0 if weights is None else weights.stat().st_size,
        refusal=refusal or _refusal(path),
    )


def _leading_out(path: Path, root: Path) -> Iterator[StepError]:
    for name in _FILES:
        if (path / name).is_symlink() and not (path / name).resolve().is_relative_to(root.resolve()):
            yield StepError("is a link that leads out of the folder, and was not followed", path=path / name)


def _refusal(path: Path) -> StepError | None:
    """Why `higgsc merge` does not take an adapter, as far as that can be told without its base."""
    adapter, problems = read_adapter(path)
    if adapter is None or problems:
        return problems[0]
    try:
        check_mergeable(adapter)
        return next(misfits(adapter, known_shapes(adapter.base, None, root=Path.cwd())), None)
    except StepError as problem:  # it listens; or a base that is here is damaged
        return problem


def _names(tensors: Iterable[str]) -> Names:
    modules = [parts[0] for name in tensors if (parts := split(name_in_file(name)[0])) is not None]
    original = any(to_transformers(module) for module in modules)
    transformers = any(to_original(module) for module in modules)
    if original:
        return "both" if transformers else "original release"
    return "transformers" if transformers else "neither"
