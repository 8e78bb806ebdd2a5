"""Two checkpoints, or adapters, side by side: their figures and how far apart their adapters are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.inspect.distance import AdapterDistance, adapter_distance
from higgsc.train.checkpoints.checkpoint import read_checkpoint
from higgsc.train.model.adapter import open_adapter
from higgsc.train.model.adapter_config import CONFIG_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two checkpoints side by side."""

    metrics: tuple[Mapping[str, float], Mapping[str, float]]
    """Empty for what is no checkpoint."""
    distance: AdapterDistance | None
    """None where one of them holds a whole model."""

    @property
    def shared(self) -> dict[str, tuple[float, float]]:
        """Figures that both have, by name."""
        first, second = self.metrics
        return {name: (value, second[name]) for name, value in first.items() if name in second}

    def document(self) -> dict[str, Any]:
        """As JSON."""
        found = self.distance
        return {
            "metrics": {
                name: {"first": one, "second": two, "difference": two - one} for name, (one, two) in self.shared.items()
            },
            "groups": {} if found is None else {name: group.document() for name, group in found.groups().items()},
            "modules": {} if found is None else {path: module.document() for path, module in found.modules.items()},
            "whole": {}
            if found is None
            else {name: {"norms": list(w.norms), "difference": w.difference} for name, w in found.whole.items()},
            "notes": [] if found is None else found.notes,
        }


def compare(first: Path, second: Path) -> Comparison:
    """Compare two checkpoints (`step-N`) or folders of adapters.

    Raises:
        StepError: One of them is neither (66), or damaged (65).
    """
    metrics = [read_checkpoint(path).metrics if (path / "metrics.json").is_file() else {} for path in (first, second)]
    adapters = [_adapter(path) for path in (first, second)]
    one, two = adapters
    return Comparison(
        metrics=(metrics[0], metrics[1]),
        distance=None if one is None or two is None else adapter_distance(open_adapter(one), open_adapter(two)),
    )


def _adapter(path: Path) -> Path | None:
    """The folder of a checkpoint's adapter; None if it holds a whole model."""
    for folder in (path / "adapter", path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if any(path.glob("model*.safetensors")):
        return None
    raise StepError(
        "neither a checkpoint nor an adapter",
        code=ExitCode.MISSING_INPUT,
        path=path,
        help="name a step-N, or a folder with adapter_config.json; `higgsc checkpoint list` shows those of a run",
    )
