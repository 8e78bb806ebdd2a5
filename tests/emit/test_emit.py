"""Emitted files: the committed builds, determinism, quoting, shellcheck."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.reading.position import SourceFile
from higgsc.compiler.reading.source import parse
from higgsc.contract.jobs import load_job
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.points import sweep_files
from higgsc.emit.shell import comment, must_be_set, quote, quote_argv
from higgsc.emit.write import compare, write
from higgsc.launch.built import load_plan

ROOT = Path(__file__).parent.parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))


def emitted_with(spec: Path, *overrides: str) -> dict[str, str]:
    (build,) = builds_of(compile_spec(spec, overrides=overrides))
    return emit_all(build)


def emitted(spec: Path, build: Path | None = None) -> dict[str, str]:
    compilation = compile_spec(spec, build=build)
    (build_,) = builds_of(compilation)
    return emit_all(build_)


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_the_committed_build_is_what_the_spec_says(spec: Path) -> None:
    compilation = compile_spec(spec)
    assert compilation.folder == f"generated/{spec.stem}"
    for build in builds_of(compilation):
        changes = compare(ROOT / build.plan.build, emit_all(build))
        assert not changes, "run `higgsc build specs/*.yaml` and commit generated/"
    if len(compilation.compiled) > 1:
        for name, text in sweep_files(compilation).items():
            assert (ROOT / compilation.folder / name).read_text("utf-8") == text


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_two_builds_in_two_folders_are_the_same_bytes(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []
    for name in ("one", "two/deeper"):
        copy = tmp_path / name
        shutil.copytree(ROOT / "specs", copy / "specs", ignore=shutil.ignore_patterns("data"))
        monkeypatch.chdir(copy / "specs" if name == "one" else tmp_path)
        compilation = compile_spec(copy / "specs" / spec.name)
        builds.append([emit_all(build) for build in builds_of(compilation)])
    assert builds[0] == builds[1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_scripts_pass_shellcheck(spec: Path, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "shellcheck is needed: apt-get install shellcheck"
    for build in builds_of(compile_spec(spec)):
        write(tmp_path / build.plan.name, emit_all(build))
    scripts = [*tmp_path.rglob("*.sh"), *tmp_path.rglob("*.sbatch")]
    assert len(scripts) >= 4
    result = subprocess.run([shellcheck, "-S", "style", *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_scripts_of_a_cpu_machine_and_of_a_site_pass_shellcheck(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "apiVersion: higgsc/v1\nname: s\nmodel: {family: higgs-audio-v2, base: builtin:tiny}\n"
        "data: {train: [{path: d.json}]}\nhardware: 2xCPU\n"
        "training: {steps: 9, global_batch: {samples: 8}, learning_rate: 1e-4}\n"
        "output: run folder's/ünï\nsecrets: [HF_TOKEN, WANDB_API_KEY]\n"
        "site: {partition: gpu, account: acc, qos: high, cpus_per_node: 16, exclusive: true, time_limit: 2-00:00:00}\n"
    )
    folder = tmp_path / "it's a build"
    write(folder, emitted(tmp_path / "s.yaml", folder))
    scripts = [*folder.rglob("*.sh"), *folder.rglob("*.sbatch")]
    result = subprocess.run(["shellcheck", "-S", "style", *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_lock_lists_every_input_and_output() -> None:
    files = emitted(ROOT / "specs" / "arabic.yaml")
    lock = json.loads(files["higgsc.lock"])
    assert set(lock["inputs"]) == {"specs/arabic.yaml", "specs/base/voice-cloning.yaml"}
    for name, digest in lock["inputs"].items():
        assert digest == sha256((ROOT / name).read_bytes()).hexdigest()
    assert set(lock["outputs"]) == set(files) - {"higgsc.lock"}
    for name, digest in lock["outputs"].items():
        assert digest == sha256(files[name].encode()).hexdigest()


def test_resolved_reads_back_as_the_spec_and_names_origins() -> None:
    text = emitted(ROOT / "specs" / "two-node.yaml")["resolved.yaml"]
    tree = parse(SourceFile(Path("resolved.yaml"), "resolved.yaml", text), Sink())
    assert tree is not None
    assert tree.plain()["training"]["learning_rate"] == 2e-4
    assert tree.plain()["training"]["trainable_parameters"] == 157_810_688
    assert yaml.safe_load(text)["hardware"]["nodes"] == 2
    origin = {line.split("#")[0].strip(): line.split("#")[1].strip() for line in text.splitlines() if "  #" in line}
    assert origin["rank: 64"] == "specs/arabic.yaml:8:38"
    assert origin["nodes: 2"] == "specs/two-node.yaml:6:11"
    assert origin["dropout: 0.0"] == "default"
    assert origin["accumulation: 2"] == "derived: 128 samples / (16 ranks x 4 per micro-batch) (passes/batch.py)"
    assert origin["epochs: 3.0"] == "specs/base/voice-cloning.yaml:12:11"


def test_job_files_and_plan_read_back(tmp_path: Path) -> None:
    write(tmp_path, emitted(ROOT / "specs" / "arabic.yaml"))
    plan = load_plan(tmp_path)
    assert [step.name for step in plan.steps] == ["prepare", "train", "merge", "evaluate"]
    for step in plan.steps:
        assert load_job(tmp_path / "jobs" / f"{step.name}.json").step == step.name


def test_write_changes_only_what_differs_and_removes_what_is_stale(tmp_path: Path) -> None:
    files = emitted(ROOT / "specs" / "quickstart.yaml")
    assert len(write(tmp_path, files).new) == len(files)
    assert not write(tmp_path, files)
    before = (tmp_path / "plan.json").stat().st_mtime_ns
    other = emitted_with(ROOT / "specs" / "quickstart.yaml", "checkpoint.every_steps=50")
    assert write(tmp_path, other).outdated == ("jobs/train.json", "resolved.yaml", "higgsc.lock")
    assert write(tmp_path, files).outdated == ("jobs/train.json", "resolved.yaml", "higgsc.lock")
    assert (tmp_path / "plan.json").stat().st_mtime_ns == before
    smaller = {path: text for path, text in files.items() if path != "jobs/evaluate.json"}
    assert write(tmp_path, smaller).stale == ("jobs/evaluate.json",)
    assert not (tmp_path / "jobs" / "evaluate.json").exists()


def test_what_was_edited_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    files = emitted(ROOT / "specs" / "quickstart.yaml")
    write(tmp_path, files)
    script = tmp_path / "slurm" / "train.sbatch"
    script.write_text(script.read_text().replace("--nodes=1", "--nodes=3"))
    other = emitted_with(ROOT / "specs" / "quickstart.yaml", "seed=1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StepError) as caught:
        write(tmp_path, other)
    assert caught.value.code == ExitCode.DIAGNOSTICS
    assert "edited by hand since the last build: slurm/train.sbatch" in str(caught.value)
    assert "-#SBATCH --nodes=1" in str(caught.value)
    assert "+#SBATCH --nodes=3" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert write(tmp_path, other, force=True).edited == ("slurm/train.sbatch",)
    assert not compare(tmp_path, other)


def test_a_file_that_was_there_before_the_first_build_counts_as_edited(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(StepError, match=r"report\.md"):
        write(tmp_path, emitted(ROOT / "specs" / "quickstart.yaml"))
    assert (tmp_path / "report.md").read_text() == "mine"


def test_a_broken_lock_is_named(tmp_path: Path) -> None:
    files = emitted(ROOT / "specs" / "quickstart.yaml")
    write(tmp_path, files)
    (tmp_path / "higgsc.lock").write_text("{}")
    with pytest.raises(StepError, match="not a lock file"):
        write(tmp_path, files)


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs", "Cc"])))
def test_quoting_survives_a_shell(text: str) -> None:
    assert shlex.split(f"echo {quote(text)}") == ["echo", text]
    assert shlex.split(quote_argv(["a b", text])) == ["a b", text]


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x00", "\x1b[2J", "a\x7f"])
def test_control_characters_do_not_reach_a_script(text: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        quote(text)
    assert "\n" not in comment(text)
    assert "\x1b" not in comment(text)


@pytest.mark.parametrize("name", ["A;rm", "$(x)", "", "A B"])
def test_only_names_of_variables_are_required(name: str) -> None:
    with pytest.raises(ValueError):
        must_be_set(name)
