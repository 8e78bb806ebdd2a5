"""Files that a spec names and that are not there: said by every command, refused where work would start."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from higgsc.compiler import presence
from higgsc.compiler.compile import compile_spec
from higgsc.compiler.presence import missing_files, missing_packages
from higgsc.compiler.render import render

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "specs", tmp_path / "specs", ignore=shutil.ignore_patterns("data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_chatml.json").write_text("[]")
    return tmp_path


def test_nothing_is_said_about_what_is_here(project: Path) -> None:
    assert missing_files(compile_spec(project / "specs" / "arabic.yaml")) == ()


def test_a_misspelt_path_names_the_file_beside_it(project: Path) -> None:
    spec = project / "specs" / "arabic.yaml"
    spec.write_text(spec.read_text().replace("train_chatml.json", "train_chatlm.json"))
    (found,) = missing_files(compile_spec(spec))
    assert (found.code, found.severity) == ("HC411", "warning")
    assert found.primary.span.text == "data/train_chatlm.json"
    assert found.help == "did you mean `data/train_chatml.json`?"


def test_a_local_base_is_looked_for_and_a_hub_id_is_not(project: Path) -> None:
    spec = project / "specs" / "arabic.yaml"
    spec.write_text(spec.read_text() + "model: {base: ./models/higgs}\n")
    (found,) = missing_files(compile_spec(spec))
    assert found.primary.span.text == "./models/higgs"


def test_points_of_a_sweep_say_it_once(project: Path) -> None:
    (project / "data" / "train_chatml.json").unlink()
    compilation = compile_spec(project / "specs" / "sweep.yaml")
    assert len(compilation.compiled) == 4
    assert len(missing_files(compilation)) == 1, render(missing_files(compilation), "text")


def test_a_build_warns_and_is_the_same_and_a_run_refuses(project: Path) -> None:
    def higgsc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "higgsc", *arguments]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    assert higgsc("build", "specs/arabic.yaml").stderr == ""
    (project / "data" / "train_chatml.json").unlink()
    assert "warning[HC411]" in higgsc("check", "specs/arabic.yaml").stderr
    again = higgsc("build", "specs/arabic.yaml")
    assert "warning[HC411]" in again.stderr
    assert "(nothing changed)" in again.stdout
    refused = higgsc("run", "specs/arabic.yaml")
    assert refused.returncode == 66
    assert "1 file of the spec not found" in refused.stderr
    assert not (project / "runs").exists()


def test_the_models_that_measure_are_looked_for_and_so_is_jiwer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = project / "specs" / "arabic.yaml"
    lines = [line for line in spec.read_text().splitlines() if not line.startswith("evaluate:")]
    judges = "evaluate: {recogniser: ./models/whisper, similarity: microsoft/wavlm-base-plus-sv}"
    spec.write_text("\n".join([*lines, judges, ""]))
    compilation = compile_spec(spec)
    assert compilation.compiled
    (found,) = missing_files(compilation)
    assert found.primary.span.text == "./models/whisper"
    monkeypatch.setattr(presence, "find_spec", lambda name: None if name == "jiwer" else name)
    (package,) = missing_packages(compilation)
    assert (package.code, package.primary.span.text) == ("HC414", "./models/whisper")
    assert package.help == "`pip install jiwer` where the step runs, or leave `recogniser` out"
    monkeypatch.setattr(presence, "find_spec", lambda name: name)
    assert missing_packages(compilation) == ()
