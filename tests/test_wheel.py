"""The wheel holds all that a login node needs: built, installed elsewhere, used outside the checkout, without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_builds_specs_outside_the_checkout(tmp_path: Path) -> None:
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("higgsc-*.whl")
    environment = tmp_path / "login-node"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, str(wheel)], check=True, cwd=tmp_path)
    installed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "numpy", "transformers", "peft"} & set(installed.lower().split())

    project = tmp_path / "project"
    shutil.copytree(ROOT / "specs", project / "specs", ignore=shutil.ignore_patterns("data"))
    result = subprocess.run(
        [environment / "bin" / "higgsc", "build", "specs/arabic.yaml"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    built = {path.relative_to(project / "generated/arabic") for path in (project / "generated/arabic").rglob("*")}
    committed = {path.relative_to(ROOT / "generated/arabic") for path in (ROOT / "generated/arabic").rglob("*")}
    assert built == committed
    for path in committed:
        if (ROOT / "generated/arabic" / path).is_file():
            assert (project / "generated/arabic" / path).read_bytes() == (ROOT / "generated/arabic" / path).read_bytes()

    step = subprocess.run(
        [environment / "bin" / "higgsc", "run-step", "generated/arabic/jobs/prepare.json"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert step.returncode != 0
    assert "higgsc[train]" in step.stderr, step.stderr
    assert "Traceback" not in step.stderr
