"""Hostile names, paths and values: refused by a diagnostic, or harmless in a script that a real cluster runs."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from higgsc.compiler.compile import compile_spec
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.spec.site import Site
from tests.slurm.cluster import Cluster
from tests.slurm.project import SPEC, Project

HOSTILE = (
    "$(touch {canary})",
    "`touch {canary}`",
    "x; touch {canary};",
    "x' ; touch {canary} ; '",
    'x" ; touch {canary} ; "',
    "x & touch {canary}",
    "x\n#SBATCH --wrap=id\ntouch {canary}",
    "--wrap=touch {canary}",
    "-x %j %x %% %A_%a",
    "../up",
    "ünï ☃ كلام",
    "back\\slash",
    "it's $HOME ~root {{a,b}} * ? [x] !! # no comment",
    " spaces ",
)
SECRET = "not-to-be-found-anywhere-7391"
FRAGMENTS = ("$(", "`", "'", '"', ";", "\n", "\\", "%x", "../", "--", "#", "&", "|", " ", "ü", "{", "*", "\x00", "a")


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_free_text_arrives_as_it_was_written(cluster: Cluster, tmp_path: Path, index: int) -> None:
    canary = tmp_path / "canary"
    text = HOSTILE[index].format(canary=canary)
    output = f"runs/{text.replace('/', '_') if text != '../up' else text}".replace("$HOME", "HOME")
    spec = f"{SPEC}output: {json.dumps(output)}\n"
    project = Project(cluster, tmp_path / "p", run=output)
    site = {"launcher": "srun", "environment": {"CANARY": text}}
    refused = "control characters" if "\n" in text else "backslash" if "\\" in text else None
    if text != text.strip():
        refused = "starts or ends with a space"
    if refused is not None:
        with pytest.raises(AssertionError, match=refused):
            project.write(site, spec)
        return
    project.write(site, spec)
    for script in (project.build / "slurm").iterdir():
        subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(
        ["shellcheck", "-S", "style", "-e", "SC2016", *(project.build / "slurm").iterdir()], capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()
    job = project.sbatch("prepare")
    cluster.wait(job, "COMPLETED")
    assert project.variables()["CANARY"] == text
    assert "prepare rank 0 of 1" in project.log(job, "prepare")
    assert not canary.exists()


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_a_site_leaves_its_place(tmp_path: Path, data: st.DataObject) -> None:
    hostile = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join)
    name = data.draw(st.sampled_from(sorted(set(Site.model_fields) - {"profile"})))
    wrapped = {
        "modules": lambda text: [text],
        "environment": lambda text: {"X": text},
        "container": lambda text: {"runtime": "apptainer", "image": text, "mounts": [f"/{text}"]},
    }
    value = wrapped.get(name, lambda text: text)(data.draw(hostile))
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"{SPEC}site: {json.dumps({name: value})}\n", "utf-8")
    compilation = compile_spec(spec)
    if not compilation.compiled:
        assert compilation.diagnostics
        return
    (build,) = builds_of(compilation)
    for path, text in emit_all(build).items():
        if path.startswith("slurm/"):
            subprocess.run(["bash", "-n"], input=text.encode(), check=True)
            for line in text.splitlines():
                if line.startswith("#SBATCH"):
                    assert len(shlex.split(line.removeprefix("#SBATCH"))) == 1, line


def test_a_secret_is_found_nowhere_but_in_the_step(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path / "p")
    project.write({"launcher": "srun"}, f"{SPEC}secrets: [SPEECH_TOKEN]\n", {"prepare": {"seconds": 3}})
    home = tmp_path / "home"
    (home / ".config/higgsc/secrets").mkdir(parents=True)
    (project.run / "logs").mkdir(parents=True)
    script = "generated/t/slurm/prepare.sbatch"
    env = {**project.env, "SPEECH_TOKEN": SECRET, "HOME": str(home)}

    # Set where it is submitted, it does not reach Slurm, and so not the job either.
    job = cluster.run("sbatch", "--parsable", script, cwd=project.root, env=env).strip()
    assert cluster.wait(job, "FAILED")["ExitCode"] == "78:0"
    assert "the secret SPEECH_TOKEN is not set" in project.log(job, "prepare")

    file = home / ".config/higgsc/secrets/SPEECH_TOKEN"
    file.write_text(SECRET)
    file.chmod(0o640)
    job = cluster.run("sbatch", "--parsable", "--export=HOME,PATH", script, cwd=project.root, env=env).strip()
    assert cluster.wait(job, "FAILED")["ExitCode"] == "78:0"
    assert f"others can read or change {file}, which holds a secret: chmod 600 {file}" in project.log(job, "prepare")

    file.chmod(0o600)
    job = cluster.run(
        "sbatch", "--parsable", "--export=HOME,PATH,PYTHONPATH", script, cwd=project.root, env=env
    ).strip()
    cluster.wait(job, "RUNNING", "COMPLETED")
    places = [cluster.root, project.root]
    found = [path for place in places for path in place.rglob("*") if path.is_file() and SECRET in _content(path)]
    assert not [path for path in found if not path.name.endswith(".env.json")]
    assert SECRET not in cluster.run("scontrol", "show", "job", "-d", job)
    cluster.wait(job, "COMPLETED")
    assert project.variables()["SPEECH_TOKEN"] == SECRET
    assert SECRET not in project.log(job, "prepare")


def _content(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")
