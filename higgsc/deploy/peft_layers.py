"""PEFT's layers on a model, without weights; and whether PEFT makes of an adapter what its file holds.

PEFT loads what it finds by name: a tensor that its configuration does not ask for is left out, and one that it asks for
stays as it was made, with no more than a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict

from higgsc.contract.outcome import StepError
from higgsc.train.model.adapter import WEIGHTS_FILE, tensor_shapes
from higgsc.train.model.adapter_config import CONFIG_FILE


def adapt(model: Any, folder: Path) -> None:
    """Put PEFT's layers on a model, as an adapter's configuration says; what they add is on the meta device.

    Args:
        model: Changed in place.
        folder: An adapter in PEFT's format.

    Raises:
        StepError: Configuration and file are not of the same adapter (65).
    """
    adapted = PeftModel(model, PeftConfig.from_pretrained(str(folder)), low_cpu_mem_usage=True)
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    stored = set(tensor_shapes(folder / WEIGHTS_FILE))
    if missing := sorted(expected - stored):
        raise StepError(
            f"{CONFIG_FILE} beside it asks for tensor {_some(missing)} too, which the file does not hold",
            path=folder / WEIGHTS_FILE,
            help="the file is incomplete, or of another training: copy both files of the adapter again",
        )
    if unasked := sorted(stored - expected):
        raise StepError(
            f"tensor {_some(unasked)} is of no module that {CONFIG_FILE} beside it names: PEFT would leave it out",
            path=folder / WEIGHTS_FILE,
            help="the two files are of different trainings: copy both files of the adapter again",
        )


def _some(names: Sequence[str]) -> str:
    return f"{names[0]!r}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
