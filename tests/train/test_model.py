"""Loading the base, and putting adapters on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.contract.jobs import LoraJob, ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.model.build import adapter_parameters, add_lora, load_base
from higgsc.train.model.builtin import tiny_path

CPU = torch.device("cpu")


def ref(base: str) -> ModelRef:
    return ModelRef(base=base, revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None)


def lora(*targets: str, modules: int, parameters: int, rank: int = 4) -> LoraJob:
    return LoraJob(
        rank=rank, alpha=8, dropout=0, targets=targets, module_count=modules, trainable_parameters=parameters
    )


def load(base: str, root: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_base(ref(base), root=root, dtype=dtype, device=CPU)


@pytest.fixture
def copied_base(tmp_path: Path) -> Path:
    shutil.copytree(tiny_path("model"), tmp_path / "base")
    return tmp_path / "base"


def test_the_base_comes_with_its_text_head(tmp_path: Path) -> None:
    base = load("builtin:tiny", tmp_path, torch.bfloat16)
    saved = load_file(tiny_path("model") / "model.safetensors")
    assert torch.equal(base.text_lm_head.weight, saved["text_lm_head.weight"].bfloat16())
    assert sum(p.numel() for p in base.parameters()) == TINY.parameter_count()
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert base.config._attn_implementation == "sdpa"
    assert not base.training
    assert not hasattr(base, "_hf_hook")


def test_a_folder_is_found_below_the_project_root(copied_base: Path) -> None:
    assert load("base", copied_base.parent).config.hidden_size == TINY.hidden_size


def test_missing_weights_are_refused_rather_than_invented(copied_base: Path) -> None:
    weights = load_file(copied_base / "model.safetensors")
    del weights["text_lm_head.weight"]
    save_file(weights, copied_base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepError, match=r"1 missing keys, such as text_lm_head\.weight"):
        load("base", copied_base.parent)


def test_the_original_format_is_refused(copied_base: Path) -> None:
    config = json.loads((copied_base / "config.json").read_text())
    (copied_base / "config.json").write_text(json.dumps(config | {"model_type": "higgs_audio"}))
    with pytest.raises(StepError, match="of type `higgs_audio`, not `higgs_audio_v2`") as caught:
        load("base", copied_base.parent)
    assert "original implementation's format" in str(caught.value)


def test_a_base_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StepError, match=r"cannot load the base `\./nowhere/at-all`") as caught:
        load("./nowhere/at-all", tmp_path)
    assert caught.value.code == ExitCode.MISSING_INPUT


def test_a_truncated_weights_file(copied_base: Path) -> None:
    weights = copied_base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(StepError, match="cannot load the base"):
        load("base", copied_base.parent)


def test_adapters_are_float32_and_the_same_for_the_same_seed(model: Any, tmp_path: Path) -> None:
    job = lora("self_attn.q_proj", "audio_mlp.up_proj", modules=4, parameters=2 * 4 * (64 + 64 + 64 + 96))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = adapter_parameters(add_lora(model.bfloat16(), job, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first) == 8
    assert {p.dtype for p in first.values()} == {torch.float32}
    assert all(("lora_A" in name) == bool(p.any()) for name, p in first.items())
    assert not any("mlp.up_proj" in name and "audio_mlp" not in name for name in first)
    second = adapter_parameters(add_lora(load("builtin:tiny", tmp_path), TINY_JOB, seed=3))
    third = adapter_parameters(add_lora(load("builtin:tiny", tmp_path), TINY_JOB, seed=3))
    fourth = adapter_parameters(add_lora(load("builtin:tiny", tmp_path), TINY_JOB, seed=4))
    name = next(iter(second))
    assert torch.equal(second[name], third[name])
    assert not torch.equal(second[name], fourth[name])


TINY_JOB = lora("self_attn.q_proj", modules=4, parameters=4 * 4 * (128 + 128))


def test_a_model_that_differs_from_the_prediction_is_refused(model: Any) -> None:
    job = lora("self_attn.q_proj", modules=28, parameters=28 * 64 * 6144)
    with pytest.raises(
        StepError,
        match="lora matches 2 modules with 1,024 parameters in the base, but the job predicts 28 with 11,010,048",
    ):
        add_lora(model, job, seed=0)


def test_a_target_that_only_partly_exists_is_refused(model: Any) -> None:
    """PEFT itself takes this list and ignores the name that matches nothing."""
    job = lora("self_attn.q_proj", "audio_encoder_proj.linear", modules=4, parameters=2048)
    with pytest.raises(StepError, match="matches 2 modules"):
        add_lora(model, job, seed=0)


def test_targets_that_match_nothing(model: Any) -> None:
    job = lora("audio_head.projector.linear", modules=1, parameters=1)
    with pytest.raises(StepError, match=r"lora targets audio_head\.projector\.linear match no module"):
        add_lora(model, job, seed=0)
