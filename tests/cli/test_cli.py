"""The command line as a user meets it: output, exit codes, streams."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from higgsc import __version__
from higgsc.cli import COMMANDS

ROOT = Path(__file__).parent.parent.parent
BROKEN = ROOT / "tests" / "fixtures" / "diagnostics"


def higgsc(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "higgsc", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_and_version_is_the_packages() -> None:
    result = higgsc("--help")
    assert result.returncode == 0
    for name, purpose in COMMANDS.items():
        assert name in result.stdout
        assert purpose in " ".join(result.stdout.split())
        assert higgsc(name, "--help").returncode == 0
    assert higgsc("--version").stdout == f"higgsc {__version__}\n"


def test_build_prints_the_plan_and_writes_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "specs", tmp_path / "specs", ignore=shutil.ignore_patterns("data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_chatml.json").touch()
    result = higgsc("build", "specs/arabic.yaml", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "arabic  8×H200 · LoRA comprehensive r=64 (157.8 M trainable, 2.7%) · bf16 · replicate 8",
        "  prepare → train → merge → evaluate",
        "  memory  34.3 of 141 GB per GPU   fits; up to 43,956 tokens per micro-batch (22 samples) would",
        "wrote 16 files to generated/arabic",
        "next: higgsc submit specs/arabic.yaml",
    ]
    assert (tmp_path / "generated/arabic/higgsc.lock").read_bytes() == (
        ROOT / "generated/arabic/higgsc.lock"
    ).read_bytes()
    again = higgsc("build", "specs/arabic.yaml", cwd=tmp_path)
    assert "(nothing changed)" in again.stdout


def test_build_check_names_what_differs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "specs", tmp_path / "specs", ignore=shutil.ignore_patterns("data"))
    assert higgsc("build", "--check", "specs/arabic.yaml", cwd=tmp_path).returncode == 1
    higgsc("build", "specs/arabic.yaml", cwd=tmp_path)
    assert higgsc("build", "--check", "specs/arabic.yaml", cwd=tmp_path).returncode == 0
    script = tmp_path / "generated/arabic/slurm/train.sbatch"
    script.write_text(script.read_text() + "# edited\n")
    result = higgsc("build", "--check", "specs/arabic.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert "edited by hand: slurm/train.sbatch" in result.stdout
    assert higgsc("build", "specs/arabic.yaml", cwd=tmp_path).returncode == 1
    assert script.read_text().endswith("# edited\n")
    assert higgsc("build", "--force", "specs/arabic.yaml", cwd=tmp_path).returncode == 0
    assert not script.read_text().endswith("# edited\n")


def test_diagnostics_go_to_stderr_with_exit_code_1_and_nothing_is_written(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    shutil.copy(BROKEN / "HC101-unknown-key.yaml", spec)
    result = higgsc("build", "spec.yaml", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "spec.yaml:6:8" in result.stderr
    assert "did you mean `targets`?" in result.stderr
    assert result.stderr.rstrip().endswith("spec.yaml: 3 errors, nothing was built")
    assert list(tmp_path.iterdir()) == [spec]


def test_one_broken_spec_does_not_keep_the_others_from_being_checked() -> None:
    result = higgsc("check", str(BROKEN / "HC003-list.yaml"), "specs/arabic.yaml")
    assert result.returncode == 1
    assert "HC003" in result.stderr
    assert result.stdout.startswith("arabic")


def test_file_names_are_relative_to_where_one_stands() -> None:
    result = higgsc("check", "fixtures/diagnostics/HC501-no-module.yaml", cwd=ROOT / "tests")
    assert "--> fixtures/diagnostics/HC501-no-module.yaml:7:7" in result.stderr


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["buidl"], "did you mean `build`?"),
        (["build"], "Missing argument"),
        (["build", "--fast", "x"], "No such option"),
        (["explain", "HC999"], "no code"),
        (["build", "-o", "x", "a.yaml", "b.yaml"], "--output takes one spec"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], hint: str) -> None:
    result = higgsc(*arguments)
    assert result.returncode == 2
    assert hint in result.stderr


def test_explain_prints_the_long_text() -> None:
    result = higgsc("explain", "hc501")
    assert result.returncode == 0
    assert result.stdout.startswith("error[HC501]: a LoRA target matches no module\n\n")


def test_run_step_without_a_job_file_exits_with_66() -> None:
    result = higgsc("run-step", "nowhere.json")
    assert result.returncode == 66
    assert result.stderr.startswith("error: nowhere.json: cannot read the job file")
    assert "Traceback" not in result.stderr


def test_init_writes_a_spec_that_compiles_and_is_never_overwritten(tmp_path: Path) -> None:
    result = higgsc("init", "first", "--hardware", "2x8xH100", "--data", "data/my samples.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "wrote specs/first.yaml\nnext: higgsc plan specs/first.yaml\n"
    assert "warning[HC411]" in result.stderr
    spec = tmp_path / "specs" / "first.yaml"
    assert spec.read_text().splitlines()[0] == "# yaml-language-server: $schema=.higgsc.v1.json"
    schema = (ROOT / "docs" / "schema" / "higgsc.v1.json").read_text()
    assert (tmp_path / "specs" / ".higgsc.v1.json").read_text() == schema
    assert higgsc("build", "specs/first.yaml", cwd=tmp_path).returncode == 0
    spec.write_text("mine")
    again = higgsc("init", "first", cwd=tmp_path)
    assert again.returncode == 2
    assert "stays as it is" in again.stderr
    assert spec.read_text() == "mine"


@pytest.mark.parametrize("name, code", [("../x", 2), ("a b", 1), ("1e5", 0), ("null", 0), ("عربي", 1)])
def test_init_takes_odd_names_or_says_what_is_wrong(tmp_path: Path, name: str, code: int) -> None:
    result = higgsc("init", name, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
