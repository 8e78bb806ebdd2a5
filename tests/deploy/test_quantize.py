"""Merged models with their linear weights in 8 bits, against what torchao and transformers make of the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import HiggsAudioV2ForConditionalGeneration, TorchAoConfig  # noqa: E402

import higgsc.train.model.torchao as guard  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.base import folder_ref, stored_dtype  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.merge.fold import merge_adapter  # noqa: E402
from higgsc.deploy.probe import random_probe  # noqa: E402
from higgsc.train.model.build import check_trainable, load_base  # noqa: E402
from higgsc.train.objective.loss import LossModule  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402
from tests.deploy.conftest import MakeAdapter  # noqa: E402

CPU = torch.device("cpu")
KEPT = ["model.embed_tokens", "model.embed_audio_tokens", "audio_lm_head", "text_lm_head"]

PLAIN_TRANSFORMERS = """
import sys, torch
from transformers import HiggsAudioV2ForConditionalGeneration
model, info = HiggsAudioV2ForConditionalGeneration.from_pretrained(
    sys.argv[1], use_text_head=True, dtype=torch.bfloat16, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
linears = [layer for layer in model.model.layers.modules() if isinstance(layer, torch.nn.Linear)]
kinds = {type(layer.weight.data).__name__ for layer in linears}
assert kinds == {sys.argv[2]}, kinds
assert type(model.audio_lm_head.weight.data) is torch.Tensor
assert "higgsc" not in sys.modules
with torch.inference_mode():
    hidden = model.model(input_ids=torch.arange(1, 40)[None], use_cache=False).last_hidden_state
    print(model.text_lm_head(hidden)[0, -1].float().topk(5).indices.tolist())
"""


@pytest.fixture
def torchao() -> Any:
    return pytest.importorskip("torchao.quantization")


def header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with safe_open(path, "pt") as opened:
        return load_file(path), opened.metadata()


def model_layers(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_it_is_what_torchao_and_transformers_write(
    scheme: Any, base: Path, make_adapter: MakeAdapter, tmp_path: Path, torchao: Any
) -> None:
    adapter = make_adapter()
    whole, out, theirs = tmp_path / "whole", tmp_path / "merged", tmp_path / "theirs"
    merge_adapter(base, adapter, whole, dtype="bf16")
    report = merge_adapter(base, adapter, out, dtype="bf16", quantize=scheme)
    config = torchao.Int8WeightOnlyConfig() if scheme == "int8" else torchao.Float8WeightOnlyConfig()
    HiggsAudioV2ForConditionalGeneration.from_pretrained(
        whole,
        use_text_head=True,
        dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(config, modules_to_not_convert=KEPT),
    ).save_pretrained(theirs)
    (ours, told), (expected, expected_told) = header(out / "model.safetensors"), header(theirs / "model.safetensors")
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == ours[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), ours[name].view(torch.uint8)), name
    names = json.loads(told.pop("tensor_names"))
    assert sorted(names) == sorted(json.loads(expected_told.pop("tensor_names")))
    assert {name: json.loads(told[name]) for name in names} == {name: json.loads(expected_told[name]) for name in names}
    written = json.loads((out / "config.json").read_text())
    assert written["quantization_config"] == json.loads((theirs / "config.json").read_text())["quantization_config"]

    quantized = report.quantization
    assert quantized is not None
    # Really smaller: what is quantised by half and a little for the scales, the file by that but for its header.
    assert quantized.sizes.quantized_after < 0.6 * quantized.sizes.quantized_before
    saved = (whole / "model.safetensors").stat().st_size - (out / "model.safetensors").stat().st_size
    assert saved == pytest.approx(quantized.sizes.quantized_before - quantized.sizes.quantized_after, abs=40_000)
    assert len(quantized.errors) == sum(name.endswith("qdata") for name in ours) == 10 * model_layers(out)
    assert 0.001 < quantized.largest_error < (0.02 if scheme == "int8" else 0.06)

    # The loss that was reported is that of the model as it is loaded, up to what bfloat16 computes otherwise.
    model = load_base(folder_ref(out), root=out, dtype=stored_dtype(out), device=CPU)
    batch = random_probe(model.config)
    with torch.no_grad():
        loss = float(LossModule(model)(batch).audio.sum() / batch.audio_labels.ne(-100).sum())
    changed = quantized.difference
    assert changed.measured_on.startswith("a sequence of random text and codes")
    assert loss == pytest.approx(changed.audio_loss, abs=0.02)
    assert changed.audio_loss != changed.audio_loss_before
    assert changed.audio_loss == pytest.approx(changed.audio_loss_before, abs=0.1)
    assert 0 < changed.codes_changed < 0.2
    assert json.loads((out / "merge.json").read_text())["quantization"]["difference"]["codes_changed"] == (
        changed.codes_changed
    )
    assert scheme in (out / "README.md").read_text()


@pytest.mark.slow
def test_shards_load_in_plain_transformers_and_speak(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path, audio_tokenizer: Path, torchao: Any
) -> None:
    out = tmp_path / "merged"

    def stop(done: int, total: int, name: str) -> None:
        if done > 0.75 * total:  # in the middle of quantising
            raise KeyboardInterrupt

    adapter = make_adapter()
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(sharded_base, adapter, out, dtype="bf16", quantize="int8", progress=stop)
    assert not out.exists()
    reached: list[tuple[int, int, str]] = []
    merge_adapter(
        sharded_base, adapter, out, dtype="bf16", quantize="int8", progress=lambda *beat: reached.append(beat)
    )
    assert reached[-1][0] == reached[-1][1] > len(reached)  # the merged files were there already
    assert not list(out.glob(".*"))
    assert not (out / "unfinished.json").exists()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert "model.layers.0.mlp.up_proj._weight_qdata" in index["weight_map"]

    result = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, str(out), "Int8Tensor"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    model = load_base(folder_ref(out), root=out, dtype=torch.bfloat16, device=CPU)
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.arange(1, 40)[None], use_cache=False).last_hidden_state
        expected = model.text_lm_head(hidden)[0, -1].float().topk(5).indices.tolist()
    assert json.loads(result.stdout.splitlines()[-1]) == expected

    speaker = Speaker.load(out, audio_tokenizer)
    wave = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    prompt = speaker._layout.segments(system="S.", scene=None, reference_text="one", target_text="two")
    reference = speaker._codec.encode(wave)
    said = [
        speaker.respond(prompt.prefix, reference, prompt.middle, seed=1, sampling=Sampling(), max_seconds=0.4).codes
        for _ in range(2)
    ]
    assert len(said[0])
    assert np.array_equal(*said)

    # Neither merged into nor trained on.
    with pytest.raises(StepError, match="quantised, and training needs"):
        check_trainable(folder_ref(out), model)
    with pytest.raises(StepError, match="base is quantised"):
        merge_adapter(out, adapter, tmp_path / "again", dtype="bf16")


def test_without_torchao_nothing_is_made(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(guard, "version", missing)
    with pytest.raises(StepError, match="not installed") as raised:
        merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16", quantize="int8")
    assert raised.value.code == ExitCode.MISSING_INPUT
    assert "higgsc[quantize]" in str(raised.value)

    quantized = tmp_path / "quantized"
    shutil.copytree(base, quantized)
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(StepError, match="not installed"):
        load_base(folder_ref(quantized), root=quantized, dtype=torch.bfloat16, device=CPU)

    monkeypatch.setattr(guard, "version", lambda name: "0.17.0+cpu")
    monkeypatch.setattr(guard, "import_module", lambda name: None)
    with pytest.raises(StepError, match=r"torchao 0\.17\.0\+cpu is too old"):
        merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16", quantize="fp8")

    def broken(name: str) -> Any:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(guard, "import_module", broken)
    with pytest.raises(StepError, match=r"cannot be imported beside torch .*: undefined symbol"):
        merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16", quantize="fp8")
    with pytest.raises(StepError, match="original release") as raised:
        merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16", quantize="int8", layout="original")
    assert raised.value.code == ExitCode.USAGE
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "quantized"}
