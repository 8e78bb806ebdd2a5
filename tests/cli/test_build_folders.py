"""Where a build may be written: never over something else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def higgsc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "higgsc", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "specs", tmp_path / "specs", ignore=shutil.ignore_patterns("data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_chatml.json").touch()
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("folder", [".", "specs", "data"])
def test_a_folder_that_holds_something_else_is_refused(project: Path, folder: str) -> None:
    before = files(project)
    result = higgsc("build", "specs/arabic.yaml", "-o", folder, cwd=project)
    assert result.returncode == 2, result.stderr
    assert "so it is not the folder of a build" in result.stderr
    assert files(project) == before


def test_a_file_is_no_folder(project: Path) -> None:
    result = higgsc("build", "specs/arabic.yaml", "-o", "data/train_chatml.json", cwd=project)
    assert result.returncode == 2
    assert "is no folder" in result.stderr


def test_two_specs_of_one_name_do_not_overwrite_each_other(project: Path) -> None:
    shutil.copy(project / "specs" / "arabic.yaml", project / "specs" / "copy.yaml")
    result = higgsc("build", "specs/arabic.yaml", "specs/copy.yaml", cwd=project)
    assert result.returncode == 1
    assert "was built from specs/arabic.yaml, not from specs/copy.yaml" in result.stderr
    forced = higgsc("build", "specs/copy.yaml", "--force", cwd=project)
    assert forced.returncode == 0
    assert '"spec": "specs/copy.yaml"' in (project / "generated/arabic/higgsc.lock").read_text()


def test_points_that_a_sweep_no_longer_has_are_removed_unless_edited(project: Path) -> None:
    spec = project / "specs" / "sweep.yaml"
    higgsc("build", "specs/sweep.yaml", cwd=project)
    folder = project / "generated" / "sweep"
    before = {path.parent.name for path in folder.glob("*/plan.json")}
    spec.write_text(spec.read_text().replace("2e-4]", "3e-4]"))
    check = higgsc("build", "--check", "specs/sweep.yaml", cwd=project)
    assert check.returncode == 1
    assert "no longer a point of the sweep" in check.stdout
    edited = next(path for path in folder.iterdir() if "2e-4" in path.name) / "report.md"
    original = edited.read_text()
    edited.write_text("mine")
    refused = higgsc("build", "specs/sweep.yaml", cwd=project)
    assert refused.returncode == 1
    assert "report.md was edited by hand" in refused.stderr
    assert edited.read_text() == "mine"
    edited.write_text(original)
    assert higgsc("build", "specs/sweep.yaml", cwd=project).returncode == 0
    after = {path.parent.name for path in folder.glob("*/plan.json")}
    assert len(after) == len(before) == 4
    assert not any("2e-4" in name for name in after)


def test_a_spec_that_is_no_sweep_any_more(project: Path) -> None:
    spec = project / "specs" / "sweep.yaml"
    higgsc("build", "specs/sweep.yaml", cwd=project)
    text = spec.read_text()
    spec.write_text(text[: text.index("sweep:")] if "\nsweep:" in text else text)
    result = higgsc("build", "specs/sweep.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    assert not (project / "generated/sweep/sweep.json").exists()
    assert (project / "generated/sweep/higgsc.lock").is_file()


def test_a_spec_that_has_become_a_sweep_leaves_nothing_of_the_one_build(project: Path) -> None:
    spec = project / "specs" / "sweep.yaml"
    text = spec.read_text()
    spec.write_text(text[: text.index("sweep:\n")])
    assert higgsc("build", "specs/sweep.yaml", cwd=project).returncode == 0
    folder = project / "generated" / "sweep"
    assert (folder / "plan.json").is_file()
    spec.write_text(text)
    result = higgsc("build", "specs/sweep.yaml", cwd=project)
    assert result.returncode == 0, result.stderr
    assert not (folder / "plan.json").exists()
    assert "#SBATCH --array=0-3\n" in (folder / "slurm/train.sbatch").read_text()
    assert "as job arrays: generated/sweep/slurm/submit.sh" in result.stdout
    assert higgsc("build", "--check", "specs/sweep.yaml", cwd=project).returncode == 0


def test_the_arrays_of_a_sweep_are_checked_and_kept_from_being_overwritten(project: Path) -> None:
    higgsc("build", "specs/sweep.yaml", cwd=project)
    script = project / "generated/sweep/slurm/train.sbatch"
    script.write_text(script.read_text().replace("--array=0-3", "--array=0-1"))
    check = higgsc("build", "--check", "specs/sweep.yaml", cwd=project)
    assert check.returncode == 1
    assert "edited by hand: slurm/train.sbatch" in check.stdout
    refused = higgsc("build", "specs/sweep.yaml", cwd=project)
    assert refused.returncode == 1
    assert "-#SBATCH --array=0-3" in refused.stderr
    assert higgsc("build", "specs/sweep.yaml", "--force", cwd=project).returncode == 0
    assert "#SBATCH --array=0-3\n" in script.read_text()


def test_a_sweep_of_different_machines_says_why_it_has_no_arrays(project: Path) -> None:
    result = higgsc("build", "specs/arabic.yaml", "--set", "sweep={hardware: [8xH200, 4xH200]}", cwd=project)
    assert result.returncode == 0, result.stderr
    assert "no job arrays: the points differ in their steps, or in what these ask Slurm for" in result.stdout
    assert not (project / "generated/arabic/slurm").exists()


def test_the_next_command_repeats_the_options(project: Path) -> None:
    result = higgsc("build", "specs/arabic.yaml", "--set", "lora.rank=16", cwd=project)
    assert result.stdout.splitlines()[-1] == "next: higgsc submit specs/arabic.yaml --set lora.rank=16"
    result = higgsc("build", "specs/arabic.yaml", "-o", "else where", cwd=project)
    assert result.stdout.splitlines()[-1] == "next: higgsc submit 'else where'"
