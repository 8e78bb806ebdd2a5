"""Builds whose steps are small real programs, and the cluster that they are submitted to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.write import write
from higgsc.launch.built import open_build
from higgsc.launch.journal import read_journal
from higgsc.launch.scheduler import scheduler_named
from higgsc.launch.status import RunStatus, status_of
from tests.slurm.cluster import Cluster, missing

REPOSITORY = Path(__file__).parent.parent.parent

SPEC = """\
apiVersion: higgsc/v1
name: t
model: {family: higgs-audio-v2, base: builtin:tiny, audio_tokenizer: builtin:tiny}
data: {train: [{path: data.txt}]}
hardware: 1xCPU
evaluate: null
training: {steps: 9, global_batch: {samples: 4}, learning_rate: 1e-3}
"""

STEP = """
import json, os, sys, time
from pathlib import Path
from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.outcome import StepResult
from higgsc.contract.receipts import receipt_path, write_receipt
from higgsc.contract.state import read_state, write_state
from higgsc.contract.stop import asked_to_stop, listen
listen()
name, root = sys.argv[1], Path.cwd()
run = root / "runs" / "t"
receipt_path(run, name).unlink(missing_ok=True)
print("hello from", name, flush=True)
behaviour = json.loads((root / "behaviour.json").read_text()).get(name, {})
if "exit" in behaviour:
    print("the cause of the failure", flush=True)
    sys.exit(behaviour["exit"])
if "steps" in behaviour:
    total = behaviour["steps"]
    before = read_state(run, name)
    start = before.done if before is not None and before.phase != "done" else 0
    heartbeat = HeartbeatWriter(run, name, unit="steps", total=total)
    for done in range(start, total):
        write_state(run, name, "running", done, total)
        heartbeat.beat(done, "loss 2.5", force=True, loss=2.5, tokens_per_second=44800.0)
        if asked_to_stop(run):
            write_state(run, name, "interrupted", done, total)
            print("saved at", done, flush=True)
            sys.exit(0)
        time.sleep(0.1)
    write_state(run, name, "done", total, total)
(root / f"{name}.out").write_text("x")
result = StepResult(summary=f"{name} did it", inputs=(root / "data.txt",), outputs=(root / f"{name}.out",))
write_receipt(run, name, result, job_path=root / f"generated/t/jobs/{name}.json", root=root, seconds=0.1)
"""


class Project:
    """A folder with a spec, its build, and the command line working in it."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.build = root / "generated" / "t"
        self.run = root / "runs" / "t"
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", **environment}

    def higgsc(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "higgsc", *arguments],
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        result = self.higgsc(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def behave(self, **behaviour: dict[str, int]) -> None:
        (self.root / "behaviour.json").write_text(json.dumps(behaviour))

    def look(self) -> RunStatus:
        """What `status` looks at, without starting a process."""
        journal = read_journal(self.run)
        assert journal is not None
        return status_of(open_build(self.build), scheduler_named(journal.scheduler))

    def states(self) -> dict[str, str]:
        return {step.step: step.state for step in self.look().steps}

    def until(self, what: Callable[[], bool], *, seconds: float = 40) -> None:
        """Wait for something; fail with the status and the logs if it does not come."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text() for path in sorted((self.run / "logs").glob("*")))
                raise AssertionError(f"{self.higgsc('status', 't').stdout}\n{logs}")
            time.sleep(0.1)

    def until_over(self) -> dict[str, str]:
        """Wait until nothing is queued or running; how the steps ended."""
        self.until(lambda: not self.look().live)
        return self.states()

    def journal(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run / "journal.json").read_text())
        return document


def make_project(root: Path, environment: dict[str, str] | None = None, spec: str = SPEC) -> Project:
    """A real build whose scripts call STEP in place of `higgsc run-step`."""
    (root / "spec.yaml").write_text(spec)
    (root / "data.txt").write_text("data")
    (root / "behaviour.json").write_text("{}")
    (compiled,) = builds_of(compile_spec(root / "spec.yaml"))
    project = Project(root, environment or {})
    write(project.build, emit_all(compiled))
    (root / "step.py").write_text(STEP)
    for script in (project.build / "torchrun" / "run.sh", *(project.build / "slurm").glob("*.sbatch")):
        text = script.read_text()
        for name in ("prepare", "train", "merge"):
            text = text.replace(f"python -m higgsc run-step generated/t/jobs/{name}.json", f"python step.py {name}")
        script.write_text(text)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Without a cluster."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Slurm of two nodes; whoever takes a daemon down brings it back."""
    if reason := missing():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.up(nodes=2, gpus=2)
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def on_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that is submitted to the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    return make_project(tmp_path, cluster.env)
