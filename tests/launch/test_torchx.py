"""TorchX as a scheduler, with the real TorchX: it has an environment of its own, because it pins an old urllib3.

`make tools` makes that environment in `.venv-torchx`; `HIGGSC_TORCHX_PYTHON` names the Python of another one. Without
either, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import read_receipt
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.write import write
from higgsc.launch.scheduler import scheduler_named

ROOT = Path(__file__).parent.parent.parent
PYTHON = Path(os.environ.get("HIGGSC_TORCHX_PYTHON", ROOT / ".venv-torchx" / "bin" / "python"))
DRIVER = Path(__file__).parent / "torchx_driver.py"

with_torchx = pytest.mark.skipif(not PYTHON.exists(), reason=f"no TorchX: {PYTHON} is not there (make tools)")


def drive(*arguments: str | Path) -> list[Any]:
    """What the driver prints, with the trainer's Python first in the PATH of the steps."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [PYTHON, DRIVER, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Six of the quickstart's samples, and a spec of two training steps."""
    speech = ROOT / "specs" / "data" / "quickstart"
    samples = json.loads((speech / "train_chatml.json").read_text("utf-8"))[:6]
    (tmp_path / "samples.json").write_text(json.dumps(samples), "utf-8")
    shutil.copytree(speech / "audio", tmp_path / "audio")
    (tmp_path / "spec.yaml").write_text(
        "apiVersion: higgsc/v1\nname: t\n"
        "model: {family: higgs-audio-v2, base: builtin:tiny, audio_tokenizer: builtin:tiny}\n"
        "data: {train: [{path: samples.json}], validation: {fraction: 0.2}}\nhardware: 1xCPU\nprecision: fp32\n"
        "training: {steps: 2, global_batch: {samples: 2}, micro_batch: {samples: 2}, learning_rate: 1e-3}\n"
        "checkpoint: {every_steps: 2}\nmerge: null\nevaluate: null\n"
    )
    return tmp_path


def built(spec: Path, *overrides: str) -> Path:
    compilation = compile_spec(spec, overrides=overrides)
    assert compilation.compiled, compilation.diagnostics
    (build,) = builds_of(compilation)
    folder = compilation.root / build.plan.build
    write(folder, emit_all(build), force=True)
    return folder


@pytest.mark.slow
@with_torchx
def test_a_plan_runs_with_local_cwd_step_after_step(project: Path) -> None:
    *submitted, phases, log = drive("submit", "local_cwd", built(project / "spec.yaml"))
    assert [line["step"] for line in submitted] == ["prepare", "train"]
    assert all(line["handle"].startswith("local_cwd://higgsc/t-") for line in submitted)
    assert phases == {"prepare": "done", "train": "done"}
    for step in ("prepare", "train"):
        assert read_receipt(project / "runs" / "t", step) is not None
    assert any("2 steps" in line for line in log), log
    assert list((project / "runs/t/logs/torchx").rglob("combined.log"))


@with_torchx
def test_a_failing_step_ends_the_chain(project: Path) -> None:
    folder = built(project / "spec.yaml")
    (project / "samples.json").write_text("[]")
    *submitted, error = drive("submit", "local_cwd", folder)
    assert [line["step"] for line in submitted] == ["prepare"]
    assert error["code"] == ExitCode.INTERNAL
    assert "prepare ended as FAILED" in error["error"]
    assert not (project / "runs/t/checkpoints").exists()


@with_torchx
def test_the_request_for_slurm_has_one_component_a_node() -> None:
    requests = {line["step"]: line["request"] for line in drive("dry-run", "slurm", ROOT / "generated" / "two-node")}
    assert requests["train"].count("--job-name=train-") == 2
    assert requests["train"].count("#SBATCH hetjob") == 1
    assert requests["train"].count("--nnodes=2 --nproc-per-node=8") == 2
    assert "--time=02:00:00" in requests["train"]
    assert "--gpus-per-task=8" in requests["train"]
    assert "${SLURM_JOB_NODELIST_HET_GROUP_0:?" in requests["train"]
    assert requests["merge"].count("--job-name=merge-") == 1
    assert "--gpus-per-task=1" in requests["merge"]


@with_torchx
def test_the_shell_text_of_a_replica_survives_the_macros_and_the_quoting(tmp_path: Path) -> None:
    """TorchX's own request for `local_cwd`, run by bash with a `python` that prints what it was started with."""
    spec = tmp_path / "spec.yaml"
    (tmp_path / "audio").mkdir()
    spec.write_text(
        "apiVersion: higgsc/v1\nname: t\nmodel: {family: higgs-audio-v2, base: builtin:tiny}\n"
        "data: {train: [{path: d.json}]}\nhardware: {nodes: 2, gpus_per_node: 2, gpu: CPU}\n"
        "training: {steps: 9, global_batch: {samples: 16}, learning_rate: 1e-4}\nevaluate: null\n"
    )
    folder = built(spec)
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/argv-$(basename "$1")-$$"\n')
    program.chmod(0o755)
    components = (folder / "torchx" / "components.py").read_text()
    namespace: dict[str, Any] = {}
    fake = type("Fake", (), {name: staticmethod(lambda **given: given) for name in ("AppDef", "Role", "Resource")})
    exec(components.replace("from torchx import specs", "").replace("-> specs.AppDef", ""), {"specs": fake}, namespace)
    (role,) = namespace["train"]()["roles"]
    script = role["args"][1].replace("${rank0_env}", "TORCHX_RANK0_HOST").replace("$$", "$")
    argv = ["bash", "-c", script, role["args"][2], "t-train-1"]
    path = f"{program.parent}:{os.environ['PATH']}"
    subprocess.run(argv, env={"PATH": path, "TORCHX_RANK0_HOST": "node1"}, check=True, cwd=tmp_path)
    (recorded,) = program.parent.glob("argv-*")
    words = recorded.read_text().splitlines()
    assert words[:4] == ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    assert "--rdzv-id=t-train-1" in words
    (endpoint,) = (word for word in words if word.startswith("--rdzv-endpoint="))
    host, _, port = endpoint.removeprefix("--rdzv-endpoint=").partition(":")
    assert host == "node1"
    assert 20000 <= int(port) < 40000
    assert words[-3:] == ["higgsc", "run-step", "generated/t/jobs/train.json"]
    without = subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert without.returncode != 0
    assert "TorchX does not name the first host" in without.stderr


@with_torchx
def test_the_request_for_kubernetes_mounts_the_claim(tmp_path: Path) -> None:
    (tmp_path / ".torchxconfig").write_text("[kubernetes]\nqueue = research\n")
    spec = kubernetes_spec(tmp_path, secrets=False)
    lines = drive("dry-run", "kubernetes", built(spec))
    assert "error" not in lines[0], lines
    requests = {line["step"]: line["request"] for line in lines}
    assert requests["train"].count("nvidia.com/gpu: '8'") == 4, "limits and requests of two replicas"
    assert "claimName: project" in requests["train"]
    assert "/work/t/generated/t/jobs/prepare.json" in requests["prepare"]
    assert "queue: research" in requests["merge"]


@with_torchx
def test_torchx_complaints_become_refusals(tmp_path: Path) -> None:
    (error,) = drive("dry-run", "kubernetes", built(kubernetes_spec(tmp_path, secrets=False)))
    assert error["code"] == ExitCode.DIAGNOSTICS
    assert "queue" in error["error"]
    assert ".torchxconfig" in error["error"]


@with_torchx
def test_what_torchx_would_drop_is_refused(tmp_path: Path) -> None:
    spec = kubernetes_spec(tmp_path, secrets=True)
    (error,) = drive("dry-run", "kubernetes", built(spec))
    assert "secrets" in error["error"]
    assert error["path"] == "secrets"
    (error,) = drive("dry-run", "slurm", built(spec, "site.account=physics"))
    assert "no option `account`" in error["error"]
    assert error["path"] == "site.account"


@with_torchx
def test_the_literal_commands_are_commands_of_torchx(project: Path) -> None:
    folder = built(project / "spec.yaml")
    *_, train = drive("commands", "local_cwd", folder)
    assert train[:2] == ["torchx", "run"]
    argv = [PYTHON, "-m", "torchx.cli.main", *train[1:]]
    argv.insert(argv.index("run") + 1, "--dryrun")
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generated/t/jobs/train.json" in done.stdout


def test_without_torchx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchx"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchx", None)
    with pytest.raises(StepError, match="TorchX is not installed") as caught:
        scheduler_named("torchx:local_cwd")
    assert caught.value.code == ExitCode.SCHEDULER_UNREACHABLE
    assert "higgsc[torchx]" in str(caught.value)


@with_torchx
def test_an_unknown_scheduler_is_named_with_those_there_are(project: Path) -> None:
    (error,) = drive("commands", "volcano", built(project / "spec.yaml"))
    assert error["code"] == ExitCode.USAGE
    assert "local_cwd" in error["error"]


def kubernetes_spec(folder: Path, *, secrets: bool) -> Path:
    spec = folder / "spec.yaml"
    spec.write_text(
        "apiVersion: higgsc/v1\nname: t\nmodel: {family: higgs-audio-v2, base: builtin:tiny}\n"
        "data: {train: [{path: d.json}]}\nhardware: 2x8\nevaluate: null\n"
        "training: {steps: 9, global_batch: {samples: 64}, learning_rate: 1e-4}\n"
        f"secrets: [{'HF_TOKEN' if secrets else ''}]\n"
        "site: {kubernetes: {image: example.org/h, claim: project, mount: /work, sub_path: t, secret_name: tokens}}\n"
    )
    return spec
