"""A process that dies at any moment of a save leaves the old whole thing or the new one, never a half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from higgsc.contract.jobs import CheckpointJob

from .conftest import Project
from .test_resume import long_job

DRIVER = Path(__file__).parent / "failpoints_driver.py"


def found(scenario: str, root: Path) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), scenario, str(root)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_training_that_dies_at_any_moment_of_a_save(project: Project) -> None:
    """Two saves: one that takes the place of an interrupted checkpoint, one that makes an older one go."""
    job = long_job(project, checkpoint=CheckpointJob(every_steps=1, keep_last=1))
    job = job.model_copy(update={"optimizer": job.optimizer.model_copy(update={"steps": 2})})
    project.write(job)
    deaths = found("train", project.root)
    calls = [death["call"] for death in deaths]
    for step in (1, 2):
        assert f"rename .step-{step}.partial" in calls
        for file in ("adapter/adapter_model.safetensors", "optimizer.safetensors", "manifest.json", ""):
            assert f"fsync .step-{step}.partial/{file}".rstrip("/") in calls
    assert {"fsync .", "rename step-1", "rmdir .step-1.replaced", "rmdir .step-1.deleted"} <= set(calls)
    for death in deaths:
        # Between two renames, the old one has stepped aside; it is put back.
        assert death["taken"] == max(death["whole"], default="step-1"), death
        assert death["whole"] or death["call"] == "rename .step-1.partial", death
        assert death["after"] is True, death
    assert {death["taken"] for death in deaths} == {"step-1", "step-2"}


def test_a_store_that_dies_at_any_moment_of_its_commit(tmp_path: Path) -> None:
    deaths = found("store", tmp_path)
    assert sum(death["call"].startswith("fsync") for death in deaths) >= 8
    for death in deaths:
        assert death["whole"] or death["call"] == "rename .written.partial", death
        assert death["after"] is True, death
    assert {name for death in deaths for name in death["whole"]} == {"1", "2"}
