"""`higgsc checkpoint validate`: every mistake is named, all of them at once, and a whole checkpoint has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.contract.receipts import sha256_file  # noqa: E402
from higgsc.deploy.inspect import tensors as tensors_module  # noqa: E402
from higgsc.deploy.inspect.check import check_adapter, check_checkpoint  # noqa: E402
from higgsc.deploy.inspect.report import Report  # noqa: E402

MakeAdapter = Callable[..., Path]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHTS, CONFIG, OPTIMIZER = "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "optimizer.safetensors"
Spoil = Callable[[Path], object]


def told(report: Report) -> list[str]:
    """The problems as `file: message`."""
    return [f"{Path(str(p.path)).relative_to(report.path)}: {p.message}" for p in report.problems]


def sign(checkpoint: Path) -> None:
    """Write the manifest anew, as a damaged training would have: what is wrong is not in the hashes."""
    files = {
        file.relative_to(checkpoint).as_posix(): {"size": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"manifest_schema": "higgsc.checkpoint/v1", "files": files}))


def tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        found = load_file(checkpoint / name)
        change(found)
        save_file(found, checkpoint / name)

    return spoil


def fields(name: str, **changes: Any) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        file = checkpoint / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


MISTAKES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "infinite weight": (
        tensors(WEIGHTS, lambda t: t[f"{Q0}.lora_A.weight"].view(-1)[-1].fill_(float("inf"))),
        (f"{WEIGHTS}: tensor '{Q0}.lora_A.weight' holds values that are not finite",),
    ),
    "moment that is no number": (
        tensors(OPTIMIZER, lambda t: t[f"exp_avg_sq.{Q0}.lora_B.default.weight"][3].fill_(float("nan"))),
        (f"{OPTIMIZER}: tensor 'exp_avg_sq.{Q0}.lora_B.default.weight' holds values that are not finite",),
    ),
    "moment gone": (
        tensors(OPTIMIZER, lambda t: t.pop(f"exp_avg.{Q0}.lora_A.default.weight")),
        (f"{OPTIMIZER}: has no tensor 'exp_avg.{Q0}.lora_A.weight', which what was trained has",),
    ),
    "moment of another shape, and one too many": (
        tensors(
            OPTIMIZER,
            lambda t: t.update({f"exp_avg.{Q0}.lora_A.default.weight": torch.ones(3), "step.x": torch.ones(1)}),
        ),
        (
            f"{OPTIMIZER}: tensor 'exp_avg.{Q0}.lora_A.weight' has shape [3], but what was trained has [4, 128]",
            f"{OPTIMIZER}: has a tensor 'step.x', which what was trained has not",
        ),
    ),
    "another base's shapes": (
        tensors(WEIGHTS, lambda t: t.update({f"{Q0}.lora_B.weight": torch.ones(96, 4)})),
        (f"{WEIGHTS}: tensors '{Q0}.lora_A.weight' and '{Q0}.lora_B.weight' make a change of shape [96, 128]",),
    ),
    "a module that the base has not": (
        tensors(
            WEIGHTS,
            lambda t: [t.update({k.replace(".0.", ".9."): t.pop(k)}) for k in list(t) if "layers.0" in k],
        ),
        tuple(
            f"{WEIGHTS}: tensor 'base_model.model.model.layers.9.{module}.lora_A.weight' adapts"
            for module in ("self_attn.q_proj", "audio_mlp.down_proj")
        ),
    ),
    "two halves gone": (
        tensors(
            WEIGHTS,
            lambda t: [t.pop(f"{Q0}.lora_A.weight"), t.pop("base_model.model.audio_lm_head.lora_B.weight")],
        ),
        (
            f"{WEIGHTS}: tensor '{Q0}.lora_A.weight' is missing",
            f"{WEIGHTS}: tensor 'base_model.model.audio_lm_head.lora_B.weight' is missing",
        ),
    ),
    "configuration of another training": (
        fields(CONFIG, lora_alpha=16, base_model_name_or_path="builtin:tiny", revision="abc", use_rslora=True),
        (
            f"{CONFIG}: `revision` is 'abc', but job.json of the same checkpoint has None for `model.revision`",
            f"{CONFIG}: `lora_alpha` is 16, but job.json of the same checkpoint has 8.0 for `lora.alpha`",
            f"{CONFIG}: `use_rslora` is True",
        ),
    ),
    "kinds that do not merge": (
        fields(CONFIG, bias="all", init_lora_weights="pissa", fan_in_fan_out=True),
        (f"{CONFIG}: `bias`", f"{CONFIG}: `init_lora_weights`", f"{CONFIG}: `fan_in_fan_out`"),
    ),
    "renamed": (fields("metrics.json", step=2), (".: is of step 4 by the folder's name, 2 by metrics.json, 4 by",)),
    "figures": (
        lambda c: (c / "metrics.json").write_text('{"step": 4, "metrics": {"loss/audio": NaN}, "interrupted": false}'),
        ("metrics.json: damaged checkpoint: this file has nan for `loss/audio`",),
    ),
    "progress of another schema": (fields("progress.json", step="four"), ("progress.json: damaged checkpoint",)),
    "no weights at all": (lambda c: shutil.rmtree(c / "adapter"), (".: holds neither an adapter/ nor a model*",)),
    "no optimizer": (lambda c: (c / OPTIMIZER).unlink(), (f"{OPTIMIZER}: is missing: no training can go on",)),
}  # fmt: skip


def test_a_real_checkpoint_is_whole(trained: Path) -> None:
    for path in sorted(trained.iterdir()):
        report = check_checkpoint(path)
        assert report.problems == []
        assert report.notes == []
        stored = [load_file(path / name) for name in (WEIGHTS, OPTIMIZER)]
        assert report.tensors == sum(map(len, stored))
        assert report.compared_with is not None
        assert "the base at" in report.compared_with  # `builtin:tiny`, whose headers are here
        assert check_adapter(path / "adapter").problems == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_that_the_hashes_do_not_show(mistake: str, checkpoints: Path) -> None:
    spoil, expected = MISTAKES[mistake]
    path = checkpoints / "step-4"
    spoil(path)
    sign(path)
    found = told(check_checkpoint(path))
    for start in expected:
        assert [line for line in found if line.startswith(start)], (start, found)
    if "halves" not in mistake and "shapes" not in mistake and "has not" not in mistake:  # these upset the moments too
        assert len(found) == len(expected), found


def test_every_file_is_told_once(checkpoints: Path) -> None:
    path = checkpoints / "step-4"
    data = bytearray((path / OPTIMIZER).read_bytes())
    data[-3] ^= 1
    (path / OPTIMIZER).write_bytes(data)
    for name in ("progress.json", WEIGHTS):
        (path / name).unlink()
    (path / "adapter" / "more.safetensors").write_bytes(b"x")
    (path / "job.json").write_text("{")
    found = told(check_checkpoint(path))
    assert [line.split(":")[0] for line in found] == [
        WEIGHTS, "job.json", OPTIMIZER, "progress.json", "adapter/more.safetensors", "job.json",
    ]  # fmt: skip
    assert "instead of" in found[1]
    assert "not saved with the checkpoint" in found[4]


def test_a_manifest_that_cannot_be_read(checkpoints: Path) -> None:
    (checkpoints / "step-4" / "manifest.json").write_text("[]")
    assert told(check_checkpoint(checkpoints / "step-4")) == [
        "manifest.json: damaged checkpoint: this file does not hold what it should"
    ]


def test_the_base_may_be_named_or_be_the_catalog_s(
    trained: Path, sharded_base: Path, make_adapter: MakeAdapter
) -> None:
    report = check_checkpoint(trained / "step-4", base=sharded_base)
    assert (report.problems, report.compared_with) == ([], f"the base at {sharded_base}")
    adapter = make_adapter()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/higgs"}))
    report = check_adapter(adapter)
    assert report.compared_with == "the released model as the catalog describes it (`org/higgs` is no folder here)"
    assert len(report.problems) == 4 * 4  # of another size, each of them
    assert check_adapter(adapter, base=sharded_base).problems == []
    with pytest.raises(StepError) as caught:
        check_adapter(adapter, base=trained / "none")
    assert caught.value.code == ExitCode.MISSING_INPUT


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, "the adapter changes nothing"),
        ({"use_dora": True}, "only the magnitudes of DoRA can differ"),
        ({"modules_to_save": ["audio_lm_head"]}, "only the modules trained whole can differ"),
    ],
)
def test_an_adapter_that_changes_nothing(
    options: dict[str, Any], note: str, base: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(**options)
    assert check_adapter(adapter, base=base).notes == []
    file = adapter / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({name: t * 0 if "lora_B" in name else t for name, t in stored.items()}, file)
    report = check_adapter(adapter, base=base)
    assert report.problems == []
    (said,) = report.notes
    assert note in said


def test_a_whole_model(checkpoints: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "BLOCK", 100_000)  # tensors in several blocks
    path = checkpoints / "step-4"
    shutil.rmtree(path / "adapter")
    weights = load_file(base / "model.safetensors")
    save_file(weights, path / "model.safetensors")
    names = sorted(weights)
    for number, half in enumerate((names[::2], names[1::2]), 1):
        moments = {f"{moment}.{name}": weights[name].clone() for name in half for moment in ("exp_avg", "exp_avg_sq")}
        save_file(moments, path / f"optimizer-0000{number}-of-00002.safetensors")
    (path / OPTIMIZER).unlink()
    sign(path)
    report = check_checkpoint(path)
    assert report.problems == []
    assert report.tensors == 3 * len(weights)

    del weights["text_lm_head.weight"]
    weights["audio_lm_head.weight"][-1, -1] = float("nan")
    save_file(weights, path / "model.safetensors")
    sign(path)
    found = told(check_checkpoint(path))
    assert len(found) == 4
    assert found[0].startswith(".: has no tensor 'text_lm_head.weight', which the base at")
    assert found[1] == "model.safetensors: tensor 'audio_lm_head.weight' holds values that are not finite"
    assert "exp_avg.text_lm_head.weight" in found[2]


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        check_checkpoint(tmp_path / "step-1")
    assert caught.value.code == ExitCode.MISSING_INPUT
