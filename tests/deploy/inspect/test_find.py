"""`higgsc checkpoint find`: whose adapters are below a folder, and which of them merge."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.inspect import find as find_module  # noqa: E402
from higgsc.deploy.inspect.convert import convert_adapter  # noqa: E402
from higgsc.deploy.inspect.find import Found, find_adapters  # noqa: E402
from tests.deploy.inspect.foreign import save_original  # noqa: E402

MakeAdapter = Callable[..., Path]


def found(folder: Path) -> dict[str, Found]:
    return {found.path.relative_to(folder).as_posix(): found for found in find_adapters(folder).adapters}


def base_is(adapter: Path, base: Path | str) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    return adapter


def test_adapters_of_all_kinds(base: Path, trained: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    shutil.copytree(trained / "step-6", tmp_path / "run" / "step-6")
    base_is(make_adapter(folder="plain", r=3), base)
    base_is(make_adapter(folder="released"), "org/higgs")
    base_is(make_adapter(folder="pissa", init_lora_weights="pissa"), base)
    save_original(base, tmp_path / "old" / "checkpoint-500", target_modules=["q_proj"])
    save_original(base, tmp_path / "old" / "checkpoint-501", target_modules=["q_proj"], pickled=False)
    convert_adapter(tmp_path / "old" / "checkpoint-500", tmp_path / "old" / "converted")
    base_is(tmp_path / "old" / "converted", base)
    base_is(tmp_path / "old" / "checkpoint-501", base)
    (tmp_path / "old" / "checkpoint-500" / "optimizer.pt").write_bytes(b"of another trainer")
    (tmp_path / "half").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "half" / "adapter_model.safetensors")

    adapters = found(tmp_path)
    assert list(adapters) == [
        "half", "old/checkpoint-500", "old/checkpoint-501", "old/converted", "pissa", "plain", "released",
        "run/step-6/adapter",
    ]  # fmt: skip
    kinds = {path: (a.format, a.names) for path, a in adapters.items()}
    assert kinds["old/checkpoint-500"] == ("pickle", "original release")
    assert kinds["old/checkpoint-501"] == ("safetensors", "original release")
    assert kinds["plain"] == kinds["old/converted"] == kinds["run/step-6/adapter"] == ("safetensors", "transformers")
    assert kinds["half"] == ("safetensors", "neither")
    reasons = {path: a.refusal and (a.refusal.message, a.refusal.help or "") for path, a in adapters.items()}
    assert [path for path, reason in reasons.items() if reason is None] == [
        "old/converted", "plain", "run/step-6/adapter",
    ]  # fmt: skip
    for path, message, way_out in (
        ("half", "cannot read the adapter's configuration", "adapter_config.json"),
        ("old/checkpoint-500", "pickled", "higgsc checkpoint convert"),
        ("old/checkpoint-501", "adapts `layers.0.self_attn.q_proj`", "higgsc checkpoint convert"),
        ("pissa", "changed the base", "PEFT"),
        ("released", "of the released model as the catalog describes it", "another size"),
    ):
        reason = reasons[path]
        assert reason is not None
        assert message in reason[0]
        assert way_out in reason[1]
    plain = adapters["plain"]
    assert (plain.rank, plain.alpha, plain.base) == (3, 6, str(base))
    assert set(plain.targets) == {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "audio_mlp.gate_proj"}
    assert plain.size == (tmp_path / "plain" / "adapter_model.safetensors").stat().st_size
    json.dumps(find_adapters(tmp_path).document())


def test_a_pickle_that_would_run_something_is_named(base: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'it-ran'}",)

    save_original(base, tmp_path / "theirs", target_modules=["q_proj"])
    torch.save({"x": Bomb()}, tmp_path / "theirs" / "adapter_model.bin")
    refusal = found(tmp_path)["theirs"].refusal
    assert refusal is not None
    assert "`posix.system`" in refusal.message
    assert not (tmp_path / "it-ran").exists()


def test_links_are_not_followed_out(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    outside = base_is(make_adapter(folder="outside"), base)
    inside = tmp_path / "inside"
    (inside / "leads-out").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (inside / "leads-out" / name).symlink_to(outside / name)
    (inside / "folder").symlink_to(outside)
    (inside / "circle").symlink_to(inside)
    shutil.copytree(outside, inside / "blobs")
    (inside / "cached").mkdir()  # as in the cache of the hub
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (inside / "cached" / name).symlink_to(Path("..") / "blobs" / name)
    adapters = found(inside)
    assert list(adapters) == ["blobs", "cached", "leads-out"]
    assert adapters["cached"].refusal is None
    refusal = adapters["leads-out"].refusal
    assert refusal is not None
    assert "leads out" in refusal.message
    assert adapters["leads-out"].rank is None


def test_bounds(make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter()
    deep = tmp_path / "tree" / Path(*"abcdefgh")
    shutil.copytree(adapter, deep)
    search = find_adapters(tmp_path / "tree")
    assert ([a.path for a in search.adapters], search.cut_off) == ([deep], False)
    monkeypatch.setattr(find_module, "MAX_DEPTH", 7)
    search = find_adapters(tmp_path / "tree")
    assert (search.adapters, search.cut_off) == ((), True)
    monkeypatch.setattr(find_module, "MAX_DEPTH", 8)
    assert not find_adapters(tmp_path / "tree").cut_off
    monkeypatch.setattr(find_module, "MAX_FOLDERS", 3)
    assert find_adapters(tmp_path / "tree").cut_off


def test_folders_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    scan = os.scandir

    def scandir(path: Path) -> Any:  # root may read everything, so that permissions prove nothing here
        if path.name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(find_module.os, "scandir", scandir)
    search = find_adapters(tmp_path)
    assert search.unreadable == (tmp_path / "secret",)
    assert search.adapters == ()
    with pytest.raises(StepError) as caught:
        find_adapters(tmp_path / "none")
    assert caught.value.code == ExitCode.MISSING_INPUT


@pytest.mark.parametrize(
    "config", ["", "[]", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": [1]}']
)
def test_configurations_that_are_none(config: str, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    (make_adapter() / "adapter_config.json").write_text(config)
    (adapter,) = find_adapters(tmp_path).adapters
    assert adapter.refusal is not None
    assert adapter.names == "transformers"
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")
