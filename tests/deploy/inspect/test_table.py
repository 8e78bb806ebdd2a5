"""`higgsc checkpoint list`: what the table says of whole, damaged, interrupted and kept checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.inspect.table import Row, read_shelf
from higgsc.train.checkpoints.checkpoint import list_checkpoints, select_checkpoint


def rows(folder: Path, *, hashes: bool = True) -> dict[str, Row]:
    return {row.path.name: row for row in read_shelf(folder, hashes=hashes).rows}


def flip(path: Path, at: float = 0.9) -> None:
    """Change a byte and not the size."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0x01
    path.write_bytes(data)


def test_a_row_for_each_step(trained: Path) -> None:
    shelf = read_shelf(trained)
    assert [row.step for row in shelf.rows] == [2, 4, 6]
    assert {row.state for row in shelf.rows} == {"whole"}
    assert [row.kept_for_good for row in shelf.rows] == [False, True, False]
    assert all(row.mesh == {"replicate": 1, "shard": 1, "tensor": 1} for row in shelf.rows)
    for row, checkpoint in zip(shelf.rows, list_checkpoints(trained), strict=True):
        assert row.metrics == checkpoint.metrics
        assert {"validation/audio_loss", "loss/audio"} <= row.metrics.keys()
        assert row.size == sum(file.stat().st_size for file in row.path.rglob("*") if file.is_file())
    (best,) = [row.path for row in shelf.rows if row.best]
    assert best == select_checkpoint(trained, "best", by="validation/audio_loss").path
    assert shelf.best_by == "validation/audio_loss"
    json.dumps(shelf.document())


def test_best_is_by_the_job_s_metric(checkpoints: Path) -> None:
    for step, loss in ((2, 1.0), (4, 0.1), (6, 0.5)):
        file = checkpoints / f"step-{step}" / "metrics.json"
        saved = json.loads(file.read_text())
        saved["metrics"] |= {"loss/text": loss, "validation/audio_loss": step}
        file.write_text(json.dumps(saved))
    assert [row.step for row in read_shelf(checkpoints, hashes=False).rows if row.best] == [2]
    job = checkpoints / "step-6" / "job.json"
    job.write_text(job.read_text().replace('"best": "validation/audio_loss"', '"best": "loss/text"'))
    shelf = read_shelf(checkpoints, hashes=False)
    assert [row.step for row in shelf.rows if row.best] == [4]
    assert shelf.best_by == "loss/text"


def test_a_flipped_byte_shows_only_when_hashes_are_read(checkpoints: Path) -> None:
    flip(checkpoints / "step-4" / "optimizer.safetensors")
    assert {name: row.state for name, row in rows(checkpoints).items()} == {
        "step-2": "whole", "step-4": "damaged", "step-6": "whole",
    }  # fmt: skip
    problem = rows(checkpoints)["step-4"].problem
    assert problem is not None
    assert problem.path == checkpoints / "step-4" / "optimizer.safetensors"
    assert "hash" in problem.message
    assert {row.state for row in rows(checkpoints, hashes=False).values()} == {"right sizes"}


@pytest.mark.parametrize(
    "name", ["manifest.json", "metrics.json", "progress.json", "job.json", "adapter/adapter_config.json"]
)
def test_a_missing_file(checkpoints: Path, name: str) -> None:
    (checkpoints / "step-4" / name).unlink()
    row = rows(checkpoints, hashes=False)["step-4"]
    assert row.state == "damaged"
    assert row.problem is not None
    assert row.problem.path == checkpoints / "step-4" / name


def test_set_aside_interrupted_and_unfinished(checkpoints: Path) -> None:
    (checkpoints / "step-4" / "adapter" / "adapter_model.safetensors").unlink()
    (checkpoints / "step-4").rename(checkpoints / "step-4.damaged")
    shutil.copytree(checkpoints / "step-6", checkpoints / ".step-8.partial")
    (checkpoints / "notes").mkdir()
    (checkpoints / "step-9").write_text("a file")
    file = checkpoints / "step-6" / "metrics.json"
    file.write_text('{"step": 6, "metrics": {}, "interrupted": true}')
    found = read_shelf(checkpoints)
    assert [row.path.name for row in found.rows] == ["step-2", "step-4.damaged", "step-6"]
    two, aside, last = found.rows
    assert (aside.state, aside.best) == ("set aside", False)
    assert aside.problem is not None
    assert "is missing" in aside.problem.message
    assert last.interrupted
    assert two.best
    assert found.unfinished == (".step-8.partial",)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        read_shelf(tmp_path / "none")
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert read_shelf(tmp_path).rows == ()
