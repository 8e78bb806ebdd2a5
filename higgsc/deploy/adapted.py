"""A base with an adapter on it, as PEFT computes it; what PEFT would pass over in silence is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import sha256_file
from higgsc.data.whisper import WhisperEncoder
from higgsc.deploy.fit import BaseShapes, misfits
from higgsc.deploy.merge.fold import REPORT_FILE
from higgsc.deploy.peft_layers import adapt
from higgsc.deploy.streamed import empty_model
from higgsc.train.decoder.heard import projector_of
from higgsc.train.model.adapter import Adapter, open_adapter, read_tensors
from higgsc.train.model.adapter_config import CONFIG_FILE
from higgsc.train.model.projector import load_projector


def put_on(model: Any, adapter: Path, *, base: Path) -> Any:
    """The model with an adapter, in evaluation mode; its weights stay as they are, the adapter is added as it computes.

    Args:
        model: The base, loaded.
        adapter: Folder of an adapter in PEFT's format, this project's or any other's, or of a checkpoint that has one.
        base: The folder that the model was loaded from.

    Raises:
        StepError: The adapter is missing (66), damaged, incomplete, of another kind than LoRA, trained on a model of
            other shapes, or in the merged model already (65).
    """
    folder = adapter / "adapter" if (adapter / "adapter" / CONFIG_FILE).is_file() else adapter
    opened = open_adapter(folder)
    _refuse_twice(opened, base)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for misfit in misfits(opened, BaseShapes(f"the model at {base}", shapes)):  # PEFT leaves them out with a warning
        raise misfit
    for layer in opened.layers.values():
        read_tensors(opened, layer.key_a, layer.key_b)  # refuses what is not finite
    with warnings.catch_warnings():
        # What PEFT does not know, the projector, follows.
        warnings.filterwarnings("ignore", r"Unexpected keyword arguments \['whisper'\]")
        adapt(empty_model(model.config.to_dict()), folder)  # before PEFT meets a tensor that is missing
        adapted = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device)).eval()
    causal = adapted.get_base_model()
    load_projector(causal, opened)
    return causal


def load_listener(model: Any, *, root: Path, device: torch.device) -> WhisperEncoder | None:
    """The Whisper that a model was trained with; None if with none.

    Args:
        model: From `put_on`, or without an adapter.
        root: What the Whisper's folder is relative to, if it is one.
        device: Where it runs.

    Raises:
        StepError: It cannot be loaded (66), or is another one than it was in the training (65).
    """
    projector = projector_of(model.model)
    if projector is None:
        return None
    wanted = projector.listener
    found = WhisperEncoder.load(wanted.ref, root=root, device=device)
    if found.fingerprint != wanted.fingerprint:
        raise StepError(
            f"the adapter was trained with the Whisper {wanted}, and what `{wanted.encoder}` is now has the "
            f"fingerprint {found.fingerprint[:12]}",
            help="give it back the Whisper of its training; a commit in `model.whisper.revision` keeps that of the hub",
        )
    return found


def merged_from(model: Path) -> str | None:
    """SHA-256 of the adapter's weights that are in a merged model; None for a folder without the report of a merge.

    Raises:
        StepError: The report is damaged (65).
    """
    report = model / REPORT_FILE
    if not report.is_file():
        return None
    try:
        return str(json.loads(report.read_text("utf-8"))["adapter_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(f"not the report of a merge: {error}", path=report) from error


def _refuse_twice(adapter: Adapter, base: Path) -> None:
    if merged_from(base) == sha256_file(adapter.weights_path):
        raise StepError(
            f"the model at {base} holds this adapter already: it is their merge",
            code=ExitCode.USAGE,
            path=adapter.folder,
            help="leave `--adapter` out, or name the base as the model",
        )
