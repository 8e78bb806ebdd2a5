"""Checkpoints: complete, checked, and the best never deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from higgsc.contract.jobs import LoraJob, ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.checkpoints import checkpoint as checkpoint_module
from higgsc.train.checkpoints.checkpoint import (
    VALIDATION_METRIC,
    list_checkpoints,
    save_checkpoint,
    select_checkpoint,
)
from higgsc.train.model.build import adapter_parameters, add_lora

Save = Callable[..., Path]
REF = ModelRef(base="org/base", revision="0ff4877", audio_tokenizer="org/codec", audio_tokenizer_revision=None)
LORA = LoraJob(
    rank=4,
    alpha=8,
    dropout=0,
    targets=("q_proj", "audio_lm_head"),
    module_count=3,
    trainable_parameters=4 * (2 * 128 + 64 + 8208),
)


@pytest.fixture
def adapted(model: Any) -> PeftModel:
    adapted = add_lora(model, LORA, seed=0)
    for parameter in adapter_parameters(adapted).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return adapted


@pytest.fixture
def save(adapted: PeftModel, tmp_path: Path) -> Save:
    weights = {name: p.detach() for name, p in adapter_parameters(adapted).items()}

    def save(step: int, **metrics: float) -> Path:
        named = {name.replace("_", "/", 1): value for name, value in metrics.items()}
        return save_checkpoint(tmp_path, step, model=adapted, weights=weights, ref=REF, metrics=named)

    return save


def test_peft_loads_the_adapter(save: Save, adapted: PeftModel, model: Any) -> None:
    folder = save(5, loss_audio=1.0)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert config["revision"] == "0ff4877"
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["audio_lm_head", "q_proj"])

    trained = {name: p.detach().clone() for name, p in adapter_parameters(adapted).items()}
    plain = adapted.unload()
    loaded = PeftModel.from_pretrained(plain, folder / "adapter", is_trainable=True)
    again = adapter_parameters(loaded)
    assert again.keys() == trained.keys()
    assert all(torch.equal(again[name], trained[name]) for name in trained)


def test_the_files_are_the_same_every_time(save: Save) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(save(5, loss_audio=1.0)) == contents(save(5, loss_audio=1.0))


@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.json", "manifest.json"]
)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.9])
def test_one_flipped_byte_is_noticed(save: Save, tmp_path: Path, name: str, where: float) -> None:
    file = save(5, loss_audio=1.0) / name
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 0x01
    file.write_bytes(data)
    with pytest.raises(StepError, match="damaged checkpoint"):
        select_checkpoint(tmp_path, "last", by=VALIDATION_METRIC)


def test_a_missing_or_truncated_file_is_noticed(save: Save, tmp_path: Path) -> None:
    weights = save(5) / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StepError, match=r"has \d+ bytes instead of \d+"):
        select_checkpoint(tmp_path, "last", by=VALIDATION_METRIC)
    weights.unlink()
    with pytest.raises(StepError, match="is missing") as caught:
        select_checkpoint(tmp_path, "last", by=VALIDATION_METRIC)
    assert caught.value.path == weights


def test_selection(save: Save, tmp_path: Path) -> None:
    save(10, loss_audio=1.0, validation_audio_loss=5.0)
    save(20, loss_audio=3.0, validation_audio_loss=2.0)
    save(100, loss_audio=2.0, validation_audio_loss=3.0)
    assert [c.step for c in list_checkpoints(tmp_path)] == [10, 20, 100]
    assert select_checkpoint(tmp_path, "best", by=VALIDATION_METRIC).step == 20
    assert select_checkpoint(tmp_path, "last", by=VALIDATION_METRIC).path == tmp_path / "step-100"


def test_without_validation_the_training_loss_decides(save: Save, tmp_path: Path) -> None:
    for step, loss in ((10, 1.0), (20, 0.5), (30, 0.7)):
        save(step, loss_audio=loss)
    assert select_checkpoint(tmp_path, "best", by=VALIDATION_METRIC).step == 20


def test_the_best_by_another_figure(save: Save, tmp_path: Path) -> None:
    for step, audio, text in ((10, 1.0, 3.0), (20, 2.0, 1.0), (30, 3.0, 2.0)):
        save(step, loss_text=text, validation_audio_loss=audio)
    assert select_checkpoint(tmp_path, "best", by="loss/text").step == 20
    assert select_checkpoint(tmp_path, "best", by="validation/text_loss").step == 20  # of which there is none
    assert select_checkpoint(tmp_path, "best", by="validation/audio_loss").step == 10


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no checkpoint") as caught:
        select_checkpoint(tmp_path / "none", "best", by=VALIDATION_METRIC)
    assert caught.value.code == ExitCode.MISSING_INPUT


def test_a_failed_save_leaves_nothing_behind(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save(5)
    assert list(tmp_path.iterdir()) == []
