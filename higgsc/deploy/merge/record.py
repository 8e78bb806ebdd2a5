"""How far a merge has come: lies in the partial folder, so that one that was killed need not start over."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import higgsc
from higgsc.deploy.merge.rows import Fidelity
from higgsc.deploy.weights import Weights

_FILE = "unfinished.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a merge is made from."""

    inputs: Mapping[str, Any]

    @classmethod
    def of(cls, weights: Weights, adapter_sha256: str, *, dtype: str, layout: str) -> Record:
        """The base's files are known by size and time of change: to read them all would take as long as the merge."""
        base = {}
        for file in weights.files:
            stat = (weights.folder / file).stat()
            base[file] = [stat.st_size, stat.st_mtime_ns]
        inputs = {"higgsc": higgsc.__version__, "base": base, "adapter": adapter_sha256}
        return cls(inputs={**inputs, "dtype": dtype, "layout": layout})

    def is_of(self, partial: Path) -> bool:
        """Whether a partial folder was made from the same."""
        return self._read(partial).get("inputs") == self.inputs

    def files(self, partial: Path) -> dict[str, dict[str, Fidelity]]:
        """The files that are complete and on disk, with the tensors that were merged in each."""
        return {
            file: {name: Fidelity(**values) for name, values in tensors.items()}
            for file, tensors in self._read(partial).get("files", {}).items()
        }

    def write(self, partial: Path, files: Mapping[str, Mapping[str, Fidelity]]) -> None:
        """Say that these are complete; they have been flushed to the disk."""
        told = {file: {name: asdict(value) for name, value in tensors.items()} for file, tensors in files.items()}
        draft = partial / f"{_FILE}.draft"
        with draft.open("w", encoding="utf-8") as stream:
            json.dump({"inputs": self.inputs, "files": told}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(partial / _FILE)

    def remove(self, partial: Path) -> None:
        """The merge is complete."""
        (partial / _FILE).unlink()

    def _read(self, partial: Path) -> dict[str, Any]:
        """What was written; nothing if that is not there. It appears whole, so what does not parse is not ours."""
        try:
            found: dict[str, Any] = json.loads((partial / _FILE).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return found
