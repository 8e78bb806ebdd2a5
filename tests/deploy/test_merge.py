"""Merging an adapter into its base, against PEFT's own merge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import HiggsAudioV2ForConditionalGeneration  # noqa: E402

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.adapted import put_on  # noqa: E402
from higgsc.deploy.merge.fold import MergeReport, merge_adapter  # noqa: E402
from higgsc.deploy.merge.rows import SAMPLED, Tally  # noqa: E402
from higgsc.train.model.adapter import open_adapter, read_tensors  # noqa: E402

MakeAdapter = Callable[..., Path]

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "mlp.down_proj": 3},
        "alpha_pattern": {r"layers\.[23]\.self_attn\.v_proj": 1.5, "audio_mlp.gate_proj": 12},
    },
    "patterns with rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"v_proj": 5}},
    "heads": {"target_modules": ["self_attn.q_proj", "audio_lm_head", "text_lm_head"]},
    "all linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ["self_attn.o_proj"], "layers_to_transform": [2]},
    "DoRA": {"use_dora": True},
    "DoRA with patterns and rslora": {"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 9}},
    "a head trained whole": {"modules_to_save": ["audio_lm_head"]},
    "heads trained whole with DoRA": {"use_dora": True, "modules_to_save": ["audio_lm_head", "text_lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


def load(folder: Path) -> Any:
    """Load with plain transformers, in float32."""
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, use_text_head=True, dtype=torch.float32).eval()


def state(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint folder."""
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def logits(model: Any) -> tuple[Any, Any]:
    """Audio and text logits of a prompt with a clip in it; written with nothing of higgsc's but its ids."""
    config = model.config
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(0, 1026, (1, 30, 8), generator=generator)
    before, after = torch.randint(0, 250, (2, 20), generator=generator)
    placeholders = torch.tensor([config.audio_token_id] * 23 + [config.audio_delay_token_id] * 7)
    with torch.no_grad():
        hidden = model.model(
            input_ids=torch.cat([before, placeholders, after])[None],
            audio_input_ids=rows,
            audio_input_ids_mask=torch.ones(1, 30, dtype=torch.bool),
        ).last_hidden_state
        return model.audio_lm_head(hidden), model.text_lm_head(hidden)


def with_adapter(base: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(load(base), adapter).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_equals_peft(kind: str, base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter(**KINDS[kind])
    report = merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32")
    adapted = with_adapter(base, adapter)
    expected_logits = logits(adapted.get_base_model())
    for got, expected in zip(logits(load(tmp_path / "merged")), expected_logits, strict=True):
        assert float((got - expected).abs().max()) <= 1e-5
    # The adapter matters, so the comparison could have failed.
    assert report.logits.adapter_effect > 100 * report.logits.max_difference
    assert all(float((a - b).abs().max()) > 1e-2 for a, b in zip(expected_logits, logits(load(base)), strict=True))

    expected = adapted.merge_and_unload().state_dict()
    merged = state(tmp_path / "merged")
    assert merged.keys() == expected.keys() == state(base).keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name]), name
    original = state(base)
    assert {name for name in merged if not torch.equal(merged[name], original[name])} == set(report.tensors)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_sharded_base(dtype: Any, sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter, merged = make_adapter(), tmp_path / "merged"
    report = merge_adapter(sharded_base, adapter, merged, dtype=dtype)
    expected = with_adapter(sharded_base, adapter).merge_and_unload().state_dict()
    tensors = state(merged)
    for name, tensor in tensors.items():
        assert tensor.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        assert torch.allclose(tensor, expected[name].to(tensor.dtype), rtol=1e-2 if dtype == "bf16" else 0, atol=1e-6)

    index, old_index = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (merged, sharded_base)
    )
    assert index["weight_map"] == old_index["weight_map"]
    for file in set(index["weight_map"].values()):
        assert set(load_file(merged / file)) == {n for n, f in index["weight_map"].items() if f == file}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert json.loads((merged / "config.json").read_text())["dtype"] == {"bf16": "bfloat16", "fp32": "float32"}[dtype]
    # bfloat16 rounds a share of the change away, and the report says how much; float32 hardly anything.
    assert (report.largest_rounding > 1e-3) == (dtype == "bf16")


def test_bf16_is_rounded_once(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter()
    merge_adapter(base, adapter, tmp_path / "merged", dtype="bf16")
    exact = with_adapter(base, adapter).merge_and_unload().state_dict()
    for name, tensor in state(tmp_path / "merged").items():
        # One unit in the last place, where sums that differ by an fp32 rounding fall on either side of a tie.
        assert torch.allclose(tensor.float(), exact[name].bfloat16().float(), rtol=2**-7, atol=0), name
        assert float((tensor != exact[name].bfloat16()).float().mean()) < 1e-3, name


@pytest.mark.slow
def test_plain_transformers_loads_it_in_a_fresh_process(
    sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    merge_adapter(sharded_base, make_adapter(), tmp_path / "merged", dtype="bf16")
    script = """if True:
        import sys
        from transformers import AutoTokenizer, GenerationConfig, HiggsAudioV2ForConditionalGeneration as Model
        for head in (True, False):
            model, info = Model.from_pretrained(sys.argv[1], use_text_head=head, output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
            assert (model.text_lm_head is not None) == head
        assert str(model.dtype) == "torch.bfloat16"
        assert GenerationConfig.from_pretrained(sys.argv[1]).ras_win_len == 7
        assert AutoTokenizer.from_pretrained(sys.argv[1]).chat_template
        assert "higgsc" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "merged")], check=True, cwd=tmp_path)


def test_same_bytes_again_and_replaces_an_earlier_merge(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter, merged = make_adapter(), tmp_path / "merged"
    merge_adapter(base, make_adapter(folder="other", r=2), merged, dtype="fp32")
    before = (merged / "model.safetensors").read_bytes()
    merge_adapter(base, adapter, merged, dtype="fp32")
    after = (merged / "model.safetensors").read_bytes()
    merge_adapter(base, adapter, tmp_path / "again", dtype="fp32")
    assert before != after == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_report_file(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    report: MergeReport = merge_adapter(
        base, make_adapter(), tmp_path / "merged", dtype="bf16", progress=lambda *step: steps.append(step)
    )
    written = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert written["schema"] == "higgsc.merge/v1"
    assert written["logits"]["max_difference"] == report.logits.max_difference > 0
    name = "model.layers.0.self_attn.q_proj.weight"
    assert set(written["tensors"]) == set(report.tensors)
    delta = (
        with_adapter(base, tmp_path / "adapter")
        .get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        .get_delta_weight("default")
    )
    assert written["tensors"][name]["change"] == pytest.approx(
        float(delta.norm() / state(base)[name].norm()),
        rel=0.1,  # of one row in eight
    )
    total = len(state(base))
    assert [step[:2] for step in steps] == [(n + 1, total) for n in range(total)]


def bad_config(**changes: Any) -> Callable[[Path, Path], None]:
    def spoil(adapter: Path, base: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def bad_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def spoil(adapter: Path, base: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})

    return spoil


def truncate(folder: int, name: str) -> Callable[[Path, Path], None]:
    def spoil(*folders: Path) -> None:
        path = folders[folder] / name
        os.truncate(path, path.stat().st_size // 2)

    return spoil


def remove(folder: int, name: str) -> Callable[[Path, Path], None]:
    return lambda *folders: (folders[folder] / name).unlink()


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"

MISTAKES: dict[str, tuple[Callable[[Path, Path], None], int, tuple[str, ...]]] = {
    "DoRA without magnitudes": (
        bad_config(use_dora=True),
        65,
        ("adapter_model.safetensors", "lora_magnitude_vector", "is missing, but `use_dora` is True"),
    ),
    "magnitudes without DoRA": (
        bad_tensors(lambda t: t.update({f"{Q0}.lora_magnitude_vector": torch.ones(128)})),
        65,
        ("adapter_model.safetensors", f"{Q0}.lora_magnitude_vector", "is there, but `use_dora` is False"),
    ),
    "a whole weight that nobody saved": (
        bad_tensors(lambda t: t.update({"base_model.model.audio_lm_head.weight": torch.ones(8208, 128)})),
        65,
        ("adapter_model.safetensors", "base_model.model.audio_lm_head.weight", "modules_to_save"),
    ),
    "a whole weight of another size": (
        lambda adapter, base: [
            spoil(adapter, base)
            for spoil in (
                bad_config(modules_to_save=["audio_lm_head"]),
                bad_tensors(lambda t: t.update({"base_model.model.audio_lm_head.weight": torch.ones(4, 128)})),
            )
        ],
        65,
        ("adapter_model.safetensors", "base_model.model.audio_lm_head.weight", "[4, 128]", "[8208, 128]"),
    ),
    "an adapter of another library": (bad_config(use_bdlora={"a": 1}), 65, ("adapter_config.json", "use_bdlora")),
    "bias": (bad_config(bias="lora_only"), 65, ("adapter_config.json", "bias", "lora_only")),
    "lora bias": (bad_config(lora_bias=True), 65, ("adapter_config.json", "lora_bias")),
    "PiSSA": (bad_config(init_lora_weights="pissa_niter_4"), 65, ("adapter_config.json", "pissa_niter_4")),
    "not LoRA": (bad_config(peft_type="IA3"), 65, ("adapter_config.json", "IA3")),
    "a field of the future": (bad_config(use_magic=[1]), 65, ("adapter_config.json", "use_magic")),
    "no rank": (bad_config(r=None), 65, ("adapter_config.json", "`r`")),
    "rank of the tensors": (bad_config(r=8), 65, ("adapter_model.safetensors", ".lora_A.weight", "[4, 128]", "rank 8")),
    "unknown key": (
        bad_tensors(lambda t: t.update({f"{Q0}.magnitude": torch.ones(3)})),
        65,
        ("adapter_model.safetensors", f"{Q0}.magnitude"),
    ),
    "module not in the base": (
        bad_tensors(lambda t: t.update({k.replace("q_proj", "x_proj"): t.pop(k) for k in list(t) if Q0 in k})),
        65,
        ("adapter_model.safetensors", "layers.0.self_attn.x_proj.lora_A.weight"),
    ),
    "original names": (
        bad_tensors(lambda t: [t.update({k.replace("model.model.", "model."): t.pop(k)}) for k in list(t)]),
        65,
        ("adapter_model.safetensors", "base_model.model.layers.", "original release", "higgsc checkpoint convert"),
    ),
    "half of a pair": (
        bad_tensors(lambda t: t.pop(f"{Q0}.lora_B.weight")),
        65,
        ("adapter_model.safetensors", f"{Q0}.lora_B.weight", "missing"),
    ),
    "shape": (
        bad_tensors(lambda t: t.update({f"{Q0}.lora_B.weight": torch.ones(96, 4)})),
        65,
        ("adapter_model.safetensors", f"{Q0}.lora_B.weight", "[96, 128]", "layers.0.self_attn.q_proj.weight"),
    ),
    "three dimensions": (
        bad_tensors(lambda t: t.update({f"{Q0}.lora_B.weight": torch.ones(128, 4, 1)})),
        65,
        ("adapter_model.safetensors", f"{Q0}.lora_B.weight"),
    ),
    "not finite": (
        bad_tensors(lambda t: t[f"{Q0}.lora_A.weight"].fill_(float("nan"))),
        65,
        ("adapter_model.safetensors", f"{Q0}.lora_A.weight", "finite"),
    ),
    "no tensors": (bad_tensors(lambda t: t.clear()), 65, ("adapter_model.safetensors",)),
    "damaged adapter": (truncate(0, "adapter_model.safetensors"), 65, ("adapter_model.safetensors", "damaged")),
    "damaged configuration": (truncate(0, "adapter_config.json"), 65, ("adapter_config.json", "JSON")),
    "no adapter": (remove(0, "adapter_model.safetensors"), 66, ("adapter_model.safetensors",)),
    "no configuration": (remove(0, "adapter_config.json"), 66, ("adapter_config.json",)),
    "damaged base": (truncate(1, "model-00002-of-{n}.safetensors"), 65, ("model-00002-of-", "damaged")),
    "shard gone": (remove(1, "model-00002-of-{n}.safetensors"), 66, ("model-00002-of-", "missing")),
    "base's configuration gone": (remove(1, "config.json"), 66, ("config.json",)),
    "base gone": (lambda adapter, base: shutil.rmtree(base), 66, ("/base`", "folder")),
}


def test_a_sum_that_overflows_is_no_mistake(make_adapter: MakeAdapter) -> None:
    """The sum is asked first whether all is finite."""
    folder, name = make_adapter(), f"{Q0}.lora_A.weight"
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[name].fill_(3e38)
    save_file(tensors, path)
    (read,) = read_tensors(open_adapter(folder), name)
    assert torch.equal(read, tensors[name])
    assert read.sum().isinf()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, sharded_base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    spoil, code, words = MISTAKES[mistake]
    adapter = make_adapter()
    base = tmp_path / "base"
    shutil.copytree(sharded_base, base)
    shards = len(list(base.glob("model-*.safetensors")))
    for path in base.glob("model-*.safetensors"):  # so that the table can name one
        path.rename(path.with_name(path.name.replace(f"{shards:05d}.", "{n}.")))
    index = base / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f"-of-{shards:05d}.", "-of-{n}."))
    spoil(adapter, base)
    with pytest.raises(StepError) as raised:
        merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32")
    assert raised.value.code == code
    assert raised.value.message[0].islower() or raised.value.message[0] in "`'["
    assert not raised.value.message.endswith(".")
    for word in words:
        assert word in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "base"}


def test_tensor_missing_in_the_base_is_noticed(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    # As in a merge made without `use_text_head=True`: transformers would fill the head with random numbers.
    poor = tmp_path / "base"
    shutil.copytree(base, poor)
    tensors = load_file(poor / "model.safetensors")
    del tensors["text_lm_head.weight"]
    save_file(tensors, poor / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepError, match="text_lm_head"):
        merge_adapter(poor, make_adapter(), tmp_path / "merged", dtype="fp32")
    assert not (tmp_path / "merged").exists()


def test_what_the_report_says_of_a_tensor_is_so(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """A LoRA's figures are of one row in eight, others of all."""
    adapter = make_adapter(modules_to_save=["audio_lm_head"])
    reports = {dtype: merge_adapter(base, adapter, tmp_path / dtype, dtype=dtype) for dtype in ("fp32", "bf16")}
    before, exact, stored = (
        load_file(path / "model.safetensors") for path in (base, tmp_path / "fp32", tmp_path / "bf16")
    )
    for name, fidelity in reports["bf16"].tensors.items():
        changed = (exact[name].double() - before[name]).norm()
        close = 1e-5 if name == "audio_lm_head.weight" else 0.2  # sixteen rows of a rank of 4
        assert fidelity.change == pytest.approx(float(changed / before[name].double().norm()), rel=close), name
        assert fidelity.rounding == pytest.approx(
            float((stored[name].double() - exact[name]).norm() / changed), rel=close
        ), name
        assert fidelity.change == pytest.approx(reports["fp32"].tensors[name].change, rel=1e-6)
        assert reports["fp32"].tensors[name].rounding == 0


def test_one_row_in_eight_is_enough() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(2000, 300, generator=generator) * torch.linspace(0.5, 2, 2000).unsqueeze(1)
    product = torch.randn(2000, 16, generator=generator) @ torch.randn(16, 300, generator=generator) * 0.001
    exact = original + product
    some, all_rows = Tally(SAMPLED), Tally()
    for first in range(0, 2000, 128):
        rows = [tensor[first : first + 128] for tensor in (original, exact, exact.bfloat16())]
        some.add(first, *rows)
        all_rows.add(first, *rows)
    assert some.fidelity.change == pytest.approx(all_rows.fidelity.change, rel=0.05)
    assert some.fidelity.rounding == pytest.approx(all_rows.fidelity.rounding, rel=0.05)
    assert some.fidelity != all_rows.fidelity


@pytest.mark.parametrize(
    ("targets", "lost", "said"),
    [
        (None, "layers.0.self_attn.v_proj.lora", r"asks for tensor .*layers\.0\.self_attn\.v_proj.* \(and 1 more\)"),
        (None, "audio_lm_head", r"asks for tensor 'base_model\.model\.audio_lm_head\.weight' too"),
        (["q_proj"], None, r"tensor .*v_proj\.lora_A\.weight' \(and 7 more\) is of no module"),
    ],
)
def test_two_files_that_are_not_of_one_adapter(
    targets: list[str] | None, lost: str | None, said: str,
    base: Path, make_adapter: MakeAdapter, tmp_path: Path,
) -> None:  # fmt: skip
    """PEFT itself computes with what it finds, and warns."""
    adapter = make_adapter(target_modules=["q_proj", "v_proj"], modules_to_save=["audio_lm_head"])
    path = adapter / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if lost is None or lost not in name}
    save_file(kept, path, metadata={"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = targets or config["target_modules"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(StepError, match=said) as raised:
        merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32")
    assert raised.value.code == ExitCode.BAD_DATA
    assert raised.value.path == path
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(base, use_text_head=True)
    with pytest.raises(StepError, match=said):
        put_on(model, adapter, base=base)


def test_a_wrong_merge_is_not_published(
    base: Path, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import higgsc.deploy.merge.fold as module

    right = module.exact_rows

    def wrong(adapter: Any, info: Any) -> Any:
        # The mistake of merging alpha instead of alpha / rank, in an adapter that changes less than bfloat16 rounds.
        exact = right(adapter, info)
        return exact and (lambda rows, first, end: rows + 4 * (exact(rows, first, end) - rows))

    monkeypatch.setattr(module, "exact_rows", wrong)
    adapter = make_adapter(std=0.01)
    for dtype in ("fp32", "bf16"):
        with pytest.raises(StepError, match="not base and adapter") as raised:
            merge_adapter(base, adapter, tmp_path / "merged", dtype=dtype)
        assert raised.value.code == ExitCode.INTERNAL
        assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_interruption_leaves_nothing(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = make_adapter()

    def interrupt(done: int, total: int, name: str) -> None:
        assert list(tmp_path.glob(".merged.partial/model.safetensors"))
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32", progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_interruption_keeps_an_earlier_merge(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merge_adapter(base, make_adapter(), merged, dtype="fp32")
    before = {path.name: path.read_bytes() for path in merged.iterdir()}

    def interrupt(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapter(base, make_adapter(folder="other", r=2), merged, dtype="bf16", progress=interrupt)
    assert {path.name: path.read_bytes() for path in merged.iterdir()} == before


def test_other_folders_are_never_replaced(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    precious = tmp_path / "merged" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(StepError) as raised:
        merge_adapter(base, make_adapter(), precious.parent, dtype="fp32")
    assert raised.value.code == ExitCode.USAGE
    assert precious.read_text() == "years of work"


def test_full_disk(base: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    adapter = make_adapter()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
    try:
        with pytest.raises(StepError) as raised:
            merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.code == ExitCode.IO
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
