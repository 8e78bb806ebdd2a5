"""`higgsc checkpoint convert`: adapters of other trainers, whose merge has to be the same weights afterwards."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import HiggsAudioV2ForConditionalGeneration  # noqa: E402

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.inspect.convert import convert_adapter  # noqa: E402
from higgsc.deploy.merge.fold import merge_adapter  # noqa: E402
from higgsc.train.model.adapter import open_adapter  # noqa: E402
from tests.deploy.inspect.foreign import save_original  # noqa: E402

MakeAdapter = Callable[..., Path]

KINDS: dict[str, dict[str, Any]] = {
    "attention, pickled": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "patterns": {
        "target_modules": ["self_attn.q_proj", "mlp.up_proj", "audio_decoder_proj.audio_lm_head"],
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "mlp.up_proj": 3},
        "alpha_pattern": {"audio_lm_head": 24, r"layers\.[23]\.mlp\.up_proj": 1.5},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["down_proj"], "layers_to_transform": [1, 2], "layers_pattern": "layers"},
    "a head trained whole, DoRA": {
        "target_modules": ["q_proj", "up_proj"],
        "modules_to_save": ["audio_decoder_proj.text_lm_head"],
        "use_dora": True,
        "pickled": False,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_release_s_adapter_merges_to_the_same_weights(kind: str, base: Path, tmp_path: Path) -> None:
    expected = save_original(base, tmp_path / "theirs", **KINDS[kind])
    made = convert_adapter(tmp_path / "theirs", tmp_path / "ours")
    adapter = open_adapter(tmp_path / "ours")
    assert made.renamed == made.modules + made.whole == len(adapter.layers) + len(adapter.full) > 0
    assert made.source.endswith(".safetensors" if "DoRA" in kind else ".bin")

    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(base, use_text_head=True, dtype=torch.float32)
    by_peft = peft.PeftModel.from_pretrained(model, tmp_path / "ours").merge_and_unload().state_dict()
    original = load_file(base / "model.safetensors")
    changed = 0
    for name, weight in expected.items():
        head = name.startswith("audio_decoder_proj.")
        ours = name.removeprefix("audio_decoder_proj.") if head else f"model.{name}"
        assert torch.equal(by_peft[ours], weight), name
        changed += not torch.equal(original[ours], weight)
    assert changed == made.renamed
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(layer.module for layer in adapter.layers.values())


def test_it_merges(base: Path, tmp_path: Path) -> None:
    expected = save_original(base, tmp_path / "theirs", **KINDS["patterns"])
    with pytest.raises(StepError, match="pickled") as caught:
        merge_adapter(base, tmp_path / "theirs", tmp_path / "merged", dtype="fp32")
    assert f"higgsc checkpoint convert {tmp_path / 'theirs'} -o OUT" in str(caught.value.help)
    convert_adapter(tmp_path / "theirs", tmp_path / "ours")
    merge_adapter(base, tmp_path / "ours", tmp_path / "merged", dtype="fp32")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    head = "audio_decoder_proj.audio_lm_head.weight"
    assert torch.allclose(merged["audio_lm_head.weight"], expected[head], atol=1e-6)


def test_unpickled_names_of_transformers_stay(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """As `torch.save(model.state_dict())` of a wrapped model writes them: `module.`, `.default.`, shared memory."""
    adapter = make_adapter(modules_to_save=["audio_lm_head"], use_dora=True)
    stored = load_file(adapter / "adapter_model.safetensors")
    memory = torch.cat([tensor.flatten() for tensor in stored.values()])
    parts = memory.split([tensor.numel() for tensor in stored.values()])
    theirs = {}
    for (name, tensor), part in zip(stored.items(), parts, strict=True):
        for old, new in (("lora_A.", "lora_A.default."), ("lora_B.", "lora_B.default."),
                         ("magnitude_vector", "magnitude_vector.default.weight"),
                         ("audio_lm_head.weight", "audio_lm_head.modules_to_save.default.weight")):  # fmt: skip
            name = name.replace(old, new)
        theirs[f"module.{name}"] = part.view(tensor.shape)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(theirs, adapter / "adapter_model.bin")
    made = convert_adapter(adapter, tmp_path / "ours")
    assert (made.renamed, made.whole) == (0, 1)
    again = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_old_files_of_torch(base: Path, tmp_path: Path) -> None:
    """The format before the zip archive."""
    save_original(base, tmp_path / "theirs", target_modules=["q_proj"])
    file = tmp_path / "theirs" / "adapter_model.bin"
    stored = torch.load(file, weights_only=True)
    torch.save(stored, file, _use_new_zipfile_serialization=False)
    assert convert_adapter(tmp_path / "theirs", tmp_path / "ours").modules == 4


class Bomb:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["torch", "torch, old", "plain pickle"])
def test_a_malicious_pickle_runs_nothing(form: str, base: Path, tmp_path: Path) -> None:
    save_original(base, tmp_path / "theirs", target_modules=["q_proj"])
    file, mark = tmp_path / "theirs" / "adapter_model.bin", tmp_path / "it-ran"
    bomb = {"base_model.model.layers.0.self_attn.q_proj.lora_A.weight": Bomb(mark)}
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        torch.save(bomb, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(StepError) as caught:
        convert_adapter(tmp_path / "theirs", tmp_path / "ours")
    assert caught.value.code == ExitCode.BAD_DATA
    assert "`posix.system`" in caught.value.message or "damaged" in caught.value.message
    assert form == "plain pickle" or "nothing of it was run" in caught.value.message
    assert not mark.exists()
    assert not (tmp_path / "ours").exists()
    # The bomb is a real one.
    if form == "torch":
        torch.load(file, weights_only=False)
        assert mark.exists()


Q0 = "base_model.model.layers.0.self_attn.q_proj"


def pickled(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(adapter: Path) -> None:
        stored = torch.load(adapter / "adapter_model.bin", weights_only=True)
        torch.save(change(stored) or stored, adapter / "adapter_model.bin")

    return spoil


def configured(**changes: Any) -> Callable[[Path], None]:
    def spoil(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def cut(adapter: Path) -> None:
    file = adapter / "adapter_model.bin"
    file.write_bytes(file.read_bytes()[:-700])


MISTAKES: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "cut off": (cut, 65, "damaged"),
    "not a pickle": (lambda a: (a / "adapter_model.bin").write_bytes(b"hello"), 65, "damaged"),
    "a pointer of git-lfs": (
        lambda a: (a / "adapter_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        65,
        "damaged",
    ),
    "a page": (lambda a: (a / "adapter_model.bin").write_bytes(b"<!DOCTYPE html><title>404</title>"), 65, "damaged"),
    "empty": (lambda a: (a / "adapter_model.bin").write_bytes(b""), 65, "damaged"),
    "no weights": (lambda a: (a / "adapter_model.bin").unlink(), 66, "missing"),
    "no configuration": (lambda a: (a / "adapter_config.json").unlink(), 66, "configuration"),
    "no tensors": (pickled(lambda t: t.clear()), 65, "no tensors"),
    "a list": (pickled(lambda t: [1, 2]), 65, "holds a list instead of tensors"),
    "numbers": (pickled(lambda t: t.update(step=3)), 65, "'step' is a int"),
    "whole numbers": (pickled(lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 128).int()})), 65, "not plain"),
    "more than is stored": (
        pickled(lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(1, 1).expand(100_000, 100_000)})),
        65,
        "more numbers than are stored",
    ),
    "another rank": (configured(r=8), 65, "gives the layer rank 8"),
    "another kind": (configured(peft_type="LOHA"), 65, "only LORA"),
    "PiSSA": (configured(init_lora_weights="pissa"), 65, "changed the base"),
    "patterns that are none": (configured(rank_pattern={"(": 4}), 65, "rank_pattern"),
    "another model": (
        pickled(lambda t: [t.update({k.replace("q_proj", "qkv"): t.pop(k)}) for k in list(t)] and None),
        65,
        "Higgs Audio v2 has no `layers.0.self_attn.qkv`",
    ),
    "added modules": (
        pickled(lambda t: t.update({"base_model.model.layers.0.audio_attn.q_proj.lora_A.weight": torch.ones(4, 128)})),
        65,
        "`layers.0.audio_attn.q_proj`",
    ),
    "two adapters": (
        pickled(
            lambda t: [t.update({f"{Q0}.lora_{h}.{n}.weight": t.pop(f"{Q0}.lora_{h}.weight")}) for h, n in ("A1", "B2")]
            and None
        ),
        65,
        "holds several adapters, 1 and 2",
    ),
    "twice": (pickled(lambda t: t.update({f"{Q0}.lora_A.default.weight": torch.ones(4, 128)})), 65, "twice"),
    "half of a pair": (pickled(lambda t: t.pop(f"{Q0}.lora_B.weight") is None), 65, "other half is there"),
    "an embedding's": (pickled(lambda t: t.update({f"{Q0}.lora_embedding_A": torch.ones(1)})), 65, "lora_embedding_A"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, base: Path, tmp_path: Path) -> None:
    spoil, code, words = MISTAKES[mistake]
    save_original(base, tmp_path / "theirs", target_modules=["q_proj"])
    spoil(tmp_path / "theirs")
    with pytest.raises(StepError) as caught:
        convert_adapter(tmp_path / "theirs", tmp_path / "ours")
    assert words in caught.value.message, caught.value
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_nothing_else_is_replaced(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    save_original(base, tmp_path / "theirs", target_modules=["q_proj"])
    mine = make_adapter(folder="mine")
    before = (mine / "adapter_model.safetensors").read_bytes()
    for out in (mine, tmp_path / "theirs"):
        with pytest.raises(StepError) as caught:
            convert_adapter(tmp_path / "theirs", out)
        assert caught.value.code == ExitCode.USAGE
    assert (mine / "adapter_model.safetensors").read_bytes() == before
    convert_adapter(tmp_path / "theirs", tmp_path / "ours")
    first = {file.name: file.read_bytes() for file in (tmp_path / "ours").iterdir()}
    convert_adapter(tmp_path / "theirs", tmp_path / "ours")  # its own result is, by the same bytes
    assert {file.name: file.read_bytes() for file in (tmp_path / "ours").iterdir()} == first


def test_a_damaged_safetensors_file(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter()
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(StepError, match="no tensors"):
        convert_adapter(adapter, tmp_path / "ours")
    (adapter / "adapter_model.safetensors").write_bytes(b"no header")
    with pytest.raises(StepError, match="damaged"):
        convert_adapter(adapter, tmp_path / "ours")
