"""`higgsc checkpoint compare`: distances against the changes themselves, formed in full and float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from higgsc.contract.outcome import StepError  # noqa: E402
from higgsc.deploy.inspect.compare import compare  # noqa: E402
from higgsc.deploy.inspect.distance import AdapterDistance, group_of  # noqa: E402

MakeAdapter = Callable[..., Path]
TARGETS = ["self_attn.q_proj", "mlp.down_proj", "audio_mlp.gate_proj", "audio_lm_head"]


def distance(first: Path, second: Path) -> AdapterDistance:
    found = compare(first, second).distance
    assert found is not None
    return found


def changes(adapter: Path) -> dict[str, Any]:
    """`s B A` of every module, by what the configuration says; written without higgsc."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    stored = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    found = {}
    for name in stored:
        if name.endswith("lora_A.weight"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[path] = scale * stored[name.replace("lora_A", "lora_B")].double() @ stored[name].double()
    return found


def scaled(adapter: Path, factor: float, *, a: float = 1.0) -> Path:
    """An adapter with every B times `factor`, and every A times `a`."""
    stored = load_file(adapter / "adapter_model.safetensors")
    factors = {name: factor if "lora_B" in name else a if "lora_A" in name else 1.0 for name in stored}
    save_file({name: t * factors[name] for name, t in stored.items()}, adapter / "adapter_model.safetensors")
    return adapter


def test_equals_the_changes_in_full(make_adapter: MakeAdapter) -> None:
    first = make_adapter(folder="first", target_modules=TARGETS)
    second = scaled(make_adapter(folder="second", r=7, use_rslora=True, target_modules=TARGETS), 0.3)
    mine, theirs = changes(first), changes(second)
    groups = distance(first, second).groups()
    assert list(groups) == ["attention", "text feed-forward", "audio feed-forward", "heads", "all"]
    for group, found in groups.items():
        paths = [path for path in mine if group in ("all", group_of(path))]
        one, two = (torch.cat([change[path].flatten() for path in paths]) for change in (mine, theirs))
        assert found.modules == (len(paths), len(paths))
        assert found.norms == pytest.approx((float(one.norm()), float(two.norm())), rel=1e-12)
        assert found.difference == pytest.approx(float((one - two).norm()), rel=1e-12)
        assert found.cosine == pytest.approx(float(one @ two / one.norm() / two.norm()), abs=1e-12)
        assert found.magnitudes is None


def test_the_same_and_the_opposite(make_adapter: MakeAdapter) -> None:
    first, same, opposite = (make_adapter(folder=name) for name in ("first", "same", "opposite"))
    scaled(same, 0.125, a=8.0)  # other factors, the same product
    scaled(opposite, -1.0)
    for other, difference, cosine in ((first, 0.0, 1.0), (same, 0.0, 1.0), (opposite, 2.0, -1.0)):
        total = distance(first, other).groups()["all"]
        assert total.norms[0] == pytest.approx(total.norms[1], rel=1e-12)
        assert total.difference == pytest.approx(difference * total.norms[0], abs=1e-7 * total.norms[0])
        assert total.cosine == pytest.approx(cosine, abs=1e-12)
    assert distance(first, first).groups()["all"].difference == 0


def test_a_small_step_of_a_training_is_not_lost_in_rounding(make_adapter: MakeAdapter) -> None:
    first, second = (make_adapter(folder=name) for name in ("first", "second"))
    scaled(second, 1 + 2**-13)
    total = distance(first, second).groups()["all"]
    assert total.difference == pytest.approx(2**-13 * total.norms[0], rel=1e-3)


def test_nothing_has_no_direction(make_adapter: MakeAdapter) -> None:
    total = distance(make_adapter(folder="first"), scaled(make_adapter(folder="second"), 0.0)).groups()["all"]
    assert total.cosine is None
    assert total.norms[1] == 0
    assert total.difference == pytest.approx(total.norms[0])


def test_modules_of_one_alone(make_adapter: MakeAdapter) -> None:
    first = make_adapter(folder="first", target_modules=["self_attn.q_proj"])
    second = make_adapter(folder="second", target_modules=["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"])
    groups = distance(first, second).groups()
    assert groups["attention"].modules == (4, 8)
    assert groups["text feed-forward"].modules == (0, 4)
    assert groups["text feed-forward"].difference == groups["text feed-forward"].norms[1] > 0
    one = torch.cat([change.flatten() for change in changes(first).values()])
    everything = changes(second)
    apart = [everything[path].norm() for path in everything if "q_proj" not in path]
    apart.append((one - torch.cat([everything[path].flatten() for path in changes(first)])).norm())
    assert groups["all"].difference == pytest.approx(float(torch.stack(apart).norm()), rel=1e-12)


def test_dora_and_modules_trained_whole(make_adapter: MakeAdapter) -> None:
    options: dict[str, Any] = {"use_dora": True, "modules_to_save": ["audio_lm_head"]}
    first, second = make_adapter(folder="first", **options), make_adapter(folder="second", std=0.1, **options)
    found = distance(first, second)
    one, two = (load_file(adapter / "adapter_model.safetensors") for adapter in (first, second))
    lengths = [name for name in one if "magnitude" in name]
    left, right = (torch.cat([stored[name].double() for name in lengths]) for stored in (one, two))
    assert found.groups()["all"].magnitudes == pytest.approx(float((left - right).norm() / left.norm()), rel=1e-12)
    head = "base_model.model.audio_lm_head.weight"
    whole = found.whole["audio_lm_head.weight"]
    assert whole.norms == pytest.approx([float(stored[head].double().norm()) for stored in (one, two)], rel=1e-12)
    assert whole.difference == pytest.approx(float((one[head].double() - two[head].double()).norm()), rel=1e-12)
    assert found.notes == ["DoRA: the distance is of the low-rank part, before the rows are brought to their lengths"]

    plain = distance(first, make_adapter(folder="plain"))
    assert plain.groups()["all"].magnitudes is None
    assert "only one of them is DoRA" in plain.notes[1]
    assert plain.notes[2] == "trained whole in the first alone, and not compared: audio_lm_head.weight"


def test_of_other_bases(make_adapter: MakeAdapter) -> None:
    first, second = (make_adapter(folder=name) for name in ("first", "second"))
    config = second / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/other"}))
    assert "different bases" in distance(first, second).notes[0]
    stored = load_file(second / "adapter_model.safetensors")
    stored = {name: t[:, :64].contiguous() if "q_proj.lora_A" in name else t for name, t in stored.items()}
    save_file(stored, second / "adapter_model.safetensors")
    with pytest.raises(StepError, match=r"is \[128, 64\] here and \[128, 128\] in the other"):
        compare(first, second)


def test_checkpoints_show_their_figures(trained: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    found = compare(trained / "step-2", trained / "step-6")
    metrics = [json.loads((trained / f"step-{n}" / "metrics.json").read_text())["metrics"] for n in (2, 6)]
    assert found.shared == {name: (value, metrics[1][name]) for name, value in metrics[0].items()}
    document = found.document()
    assert document["metrics"]["loss/audio"]["difference"] == metrics[1]["loss/audio"] - metrics[0]["loss/audio"]
    assert document["groups"]["all"]["difference"] > 0
    assert compare(trained / "step-2", make_adapter(target_modules=TARGETS)).shared == {}
    (tmp_path / "whole").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "whole" / "model-00001-of-00002.safetensors")
    assert compare(trained / "step-2", tmp_path / "whole").distance is None
    with pytest.raises(StepError, match="neither a checkpoint nor an adapter"):
        compare(trained, trained / "step-2")
