"""`higgsc checkpoint` as it is typed: what a name may stand for, what is printed, exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from higgsc.cli import build, checkpoint
from higgsc.contract.outcome import ExitCode, StepError
from tests.deploy.inspect.foreign import save_original

MakeAdapter = Callable[..., Path]
SPECS = Path(__file__).parents[3] / "specs"


def call(*arguments: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(checkpoint.command, [*map(str, arguments)])
    if not fails:
        assert result.exit_code == 0, result.output
    return result


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x01
    path.write_bytes(data)


def test_the_table(checkpoints: Path) -> None:
    flip(checkpoints / "step-4" / "optimizer.safetensors")
    lines = call("list", checkpoints).output.splitlines()
    assert lines[1].split() == ["step", "validation", "training", "size", "files", "mesh", "saved"]
    two, four = (line.split() for line in lines[2:4])
    metrics = json.loads((checkpoints / "step-2" / "metrics.json").read_text())["metrics"]
    assert two[:3] == ["2", f"{metrics['validation/audio_loss']:.4g}", f"{metrics['loss/audio']:.4g}"]
    assert "whole" in two
    assert "1 process" in lines[2]
    assert "damaged" in four
    assert "kept for good, optimizer.safetensors: this file does not have the hash" in lines[3]
    assert sum("best by validation/audio_loss" in line for line in lines) == 1
    assert "damaged" not in call("list", "--fast", checkpoints).output
    document = json.loads(call("list", "--json", checkpoints).output)
    assert document["schema"] == "higgsc.checkpoints/v1"
    assert [row["state"] for row in document["folders"][0]["checkpoints"]] == ["whole", "damaged", "whole"]


def test_what_a_name_may_be(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SPECS, "specs")
    assert CliRunner().invoke(build.command, ["specs/quickstart.yaml"]).exit_code == 0
    run = tmp_path / "runs" / "quickstart"
    for name in ("specs/quickstart.yaml", "generated/quickstart", "quickstart"):
        with pytest.raises(StepError, match="no checkpoints yet") as caught:
            CliRunner().invoke(checkpoint.command, ["list", name], catch_exceptions=False)
        assert caught.value.code == ExitCode.MISSING_INPUT
        assert caught.value.path == run / "checkpoints"
    assert "no checkpoints" in call("list").output
    shutil.copytree(trained, run / "checkpoints")
    # As JSON: the table says how long ago each was saved, which goes on while this runs.
    names = ("specs/quickstart.yaml", "generated/quickstart", "quickstart", run)
    assert len({call("list", "--json", name).output for name in names}) == 1
    assert call("list", "quickstart").output.startswith("runs/quickstart/checkpoints\n")
    with pytest.raises(StepError, match="no run, build or spec `nothing`"):
        CliRunner().invoke(checkpoint.command, ["list", "nothing"], catch_exceptions=False)
    assert call("validate", "quickstart").output.count(": whole (") == 3
    assert call("validate", run / "checkpoints" / "step-4").output.count(": whole (") == 1
    assert call("validate", run / "checkpoints" / "step-4" / "adapter").output.count(": whole (") == 1


def test_validate_exits_with_65(checkpoints: Path) -> None:
    flip(checkpoints / "step-4" / "adapter" / "adapter_model.safetensors")
    (checkpoints / "step-6" / "progress.json").unlink()
    result = call("validate", checkpoints, fails=True)
    assert result.exit_code == ExitCode.BAD_DATA
    assert "step-2: whole" in result.output
    assert "step-4: 1 problem (" in result.output
    assert "does not have the hash" in result.output
    assert "step-6: 1 problem (" in result.output
    result = call("validate", "--json", checkpoints, fails=True)
    assert result.exit_code == ExitCode.BAD_DATA
    document = json.loads(result.output)
    assert document["schema"] == "higgsc.checkpoint-check/v1"
    assert [found["whole"] for found in document["checked"]] == [True, False, False]


def test_nothing_to_validate_is_not_a_success(checkpoints: Path) -> None:
    for step in (2, 4, 6):
        (checkpoints / f"step-{step}").rename(checkpoints / f"step-{step}.damaged")
    with pytest.raises(StepError, match="no checkpoint here") as caught:
        CliRunner().invoke(checkpoint.command, ["validate", str(checkpoints)], catch_exceptions=False)
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert call("list", checkpoints).output.count("set aside") == 3


def test_compare(trained: Path) -> None:
    output = call("compare", trained / "step-2", trained / "step-6").output
    for word in ("validation/audio_loss", "attention", "audio feed-forward", "heads", "all", "cosine"):
        assert word in output
    assert "DoRA" not in output
    document = json.loads(call("compare", trained / "step-2", trained / "step-2", "--json").output)
    assert document["schema"] == "higgsc.checkpoint-comparison/v1"
    assert document["groups"]["all"]["difference"] == 0


def test_find_and_convert(base: Path, trained: Path, tmp_path: Path) -> None:
    save_original(base, tmp_path / "old" / "checkpoint-9", target_modules=["q_proj"])
    output = call("find", tmp_path / "old").output
    assert "r=4 alpha=6  pickle" in output
    assert "names of original release" in output
    assert "does not merge: the adapter's weights are pickled" in output
    output = call("convert", tmp_path / "old" / "checkpoint-9", "-o", tmp_path / "ours").output
    assert "4 modules, 4 renamed from the original release's names" in output
    assert call("validate", tmp_path / "ours", "--base", base).output.count("whole") == 1
    assert call("find", trained / "step-2").output.endswith("  merges\n")
    document = json.loads(call("find", "--json", tmp_path).output)
    assert document["schema"] == "higgsc.adapters/v1"
    assert "no adapter below" in call("find", SPECS).output
