"""What the scripts say, word by word; and that containers, run by stand-ins of their commands, get what they need."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from tests.slurm.cluster import Cluster
from tests.slurm.project import SPEC, Project

GPUS = SPEC.replace("hardware: 2x2xCPU", "hardware: 2x2xH100")
ROOT = Path(__file__).parent.parent.parent


def scripts(folder: Path, site: dict[str, Any], spec: str = GPUS) -> dict[str, str]:
    (folder / "spec.yaml").write_text(f"{spec}site: {json.dumps(site)}\n")
    (build,) = builds_of(compile_spec(folder / "spec.yaml"))
    files = {path.removeprefix("slurm/"): text for path, text in emit_all(build).items() if path.startswith("slurm/")}
    for path, text in files.items():
        (folder / path).write_text(text)
    done = subprocess.run(["shellcheck", "-S", "style", *(folder / path for path in files)], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
    return files


@pytest.mark.parametrize(
    "site, train, merge",
    [
        ({"partition": "gpu"}, "#SBATCH --partition=gpu", "#SBATCH --partition=gpu"),
        ({"account": "a"}, "#SBATCH --account=a", "#SBATCH --account=a"),
        ({"qos": "high"}, "#SBATCH --qos=high", "#SBATCH --qos=high"),
        ({"reservation": "r"}, "#SBATCH --reservation=r", "#SBATCH --reservation=r"),
        ({"constraint": "a&b"}, "#SBATCH --constraint='a&b'", "#SBATCH --constraint='a&b'"),
        ({"exclude": "n[1-2]"}, "#SBATCH --exclude='n[1-2]'", "#SBATCH --exclude='n[1-2]'"),
        ({"mail": "a@b.org"}, "#SBATCH --mail-user=a@b.org", "#SBATCH --mail-type=FAIL,REQUEUE"),
        ({"gpu_type": "h100"}, "#SBATCH --gpus-per-node=h100:2", "#SBATCH --gpus-per-node=h100:1"),
        ({"gpu_request": "gres"}, "#SBATCH --gres=gpu:2", "#SBATCH --gres=gpu:1"),
        ({"gpu_request": "gres", "gpu_type": "a"}, "#SBATCH --gres=gpu:a:2", "#SBATCH --gres=gpu:a:1"),
        ({"cpus_per_node": 32}, "#SBATCH --cpus-per-task=32", "#SBATCH --cpus-per-task=16"),
        ({"cpus_per_node": 32, "launcher": "srun"}, "#SBATCH --cpus-per-task=16", "#SBATCH --cpus-per-task=16"),
        ({"launcher": "srun"}, "#SBATCH --ntasks-per-node=2", "#SBATCH --ntasks-per-node=1"),
        ({"memory_per_node": 500}, "#SBATCH --mem=500G", "#SBATCH --mem=250G"),
        ({"memory_per_node": 500, "exclusive": True}, "#SBATCH --mem=0", "#SBATCH --mem=250G"),
        ({"time_limit": "10:30"}, "#SBATCH --time=10:30:00", "#SBATCH --time=10:30:00"),
        ({"time_limit": "1-10:30"}, "#SBATCH --time=1-10:30", "#SBATCH --time=1-10:30"),
        ({"signal_lead": 600}, "#SBATCH --signal=B:USR1@600", "srun --kill-on-bad-exit=1"),
        ({"max_requeues": 3}, '"${SLURM_RESTART_COUNT:-0}" -ge 3', "#SBATCH --requeue"),
        ({"modules": ["cuda/12", "b"]}, "module load cuda/12 b", "module load cuda/12 b"),
        ({"venv": "my venv"}, "realpath -e 'my venv'", "realpath -e 'my venv'"),
        ({"conda": "higgs"}, "conda activate higgs", "conda activate higgs"),
        ({"network_interface": "ib0"}, "export NCCL_SOCKET_IFNAME=ib0", "export PYTHONUNBUFFERED=1"),
        ({"network_interface": "ib0"}, "export GLOO_SOCKET_IFNAME=ib0", "export PYTHONUNBUFFERED=1"),
        ({"infiniband": "mlx5_0"}, "export NCCL_IB_HCA=mlx5_0", "export PYTHONUNBUFFERED=1"),
        ({"hf_home": "/w/hf"}, "export HF_HOME=/w/hf", "export HF_HOME=/w/hf"),
        ({"node_cache": "/l"}, 'TRITON_CACHE_DIR=/l"/higgsc-$SLURM_JOB_USER/triton"', "TORCHINDUCTOR_CACHE_DIR=/l"),
        ({"environment": {"NCCL_DEBUG": "IN FO"}}, "export NCCL_DEBUG='IN FO'", "export NCCL_DEBUG='IN FO'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_word_of_a_site_is_in_the_scripts(tmp_path: Path, site: dict[str, Any], train: str, merge: str) -> None:
    files = scripts(tmp_path, site)
    assert train in files["train.sbatch"]
    assert merge in files["merge.sbatch"]


def test_steps_that_cannot_be_interrupted_have_short_scripts(tmp_path: Path) -> None:
    files = scripts(tmp_path, {})
    for step in ("prepare", "merge", "evaluate"):
        text = files[f"{step}.sbatch"]
        assert not [word for word in ("trap", "requeue ", "--signal", "rdzv", "state/") if word in text]
        assert len(text.splitlines()) < 30


def test_a_chain_is_the_same_script_after_the_end_of_the_one_before(tmp_path: Path) -> None:
    files = scripts(tmp_path, {"chain": 3})
    submit = files["submit.sh"]
    assert submit.count("generated/t/slurm/train.sbatch") == 3
    assert '--dependency="afterany:$train" ' in submit
    assert '--dependency="afterany:$train_2" ' in submit
    assert '--dependency="afterok:$train_3" ' in submit
    assert "scontrol requeue" not in files["train.sbatch"]


def test_pyxis_is_told_by_options_of_srun(tmp_path: Path) -> None:
    container = {"runtime": "pyxis", "image": "nvcr.io#nvidia/pytorch:25.10-py3", "mounts": ["/data", "/a:/b:ro"]}
    text = scripts(tmp_path, {"container": container})["train.sbatch"]
    assert "--container-image='nvcr.io#nvidia/pytorch:25.10-py3' --no-container-mount-home" in text
    assert '--container-workdir="$PWD" --container-mounts="$PWD:$PWD",/data:/data,/a:/b:ro' in text


@pytest.mark.parametrize("runtime", ["apptainer", "enroot"])
def test_the_steps_run_inside_the_container(cluster: Cluster, tmp_path: Path, runtime: str) -> None:
    """A stand-in notes how it was called, and drops what the real one would not pass on."""
    command = tmp_path / "bin" / runtime
    command.parent.mkdir()
    keep = 'keep=(); while [ $# -gt 0 ]; do case $1 in --env) keep+=("$2=${!2:-}"); shift 2;; --mount) shift 2;; '
    command.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n'
        + (
            'while [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"\n'
            if runtime == "apptainer"
            else f'{keep}start) shift;; *) break;; esac; done; shift; cd /; work="$PATH"\n'
            'exec env -i PATH="$work" PYTHONPATH="$PYTHONPATH" SLURM_JOB_ID="$SLURM_JOB_ID" "${keep[@]}" "$@"\n'
        )
    )
    command.chmod(0o755)
    project = Project(cluster, tmp_path / "p")
    container = {"runtime": runtime, "image": "images/higgsc.sif", "mounts": ["/data", "/a:/b:ro"]}
    project.write({"launcher": "srun", "container": container, "environment": {"WORD": "a b"}})
    env = {**project.env, "PATH": f"{command.parent}:{project.env['PATH']}"}
    (project.run / "logs").mkdir(parents=True)
    job = cluster.run("sbatch", "--parsable", "generated/t/slurm/train.sbatch", cwd=project.root, env=env).strip()
    cluster.wait(job, "COMPLETED")
    assert [project.variables("train", rank)["WORD"] for rank in range(4)] == ["a b"] * 4
    assert project.variables("train", 3)["PWD" if runtime == "apptainer" else "RANK"] in (str(project.root), "3")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4
    option = "--bind" if runtime == "apptainer" else "--mount"
    assert f"{option} /data:/data {option} /a:/b:ro" in calls[0]


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "specs/sites").glob("*.yaml")))
def test_the_sites_that_are_shipped_make_scripts_that_pass_shellcheck(tmp_path: Path, profile: str) -> None:
    compilation = compile_spec(ROOT / "specs/arabic.yaml", site=profile, overrides=("hardware=2x8",))
    (build,) = builds_of(compilation)
    for path, text in emit_all(build).items():
        if path.startswith("slurm/"):
            (tmp_path / Path(path).name).write_text(text)
    done = subprocess.run(["shellcheck", "-S", "style", *tmp_path.iterdir()], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
