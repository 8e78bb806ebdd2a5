"""A project with a spec for two nodes with two CPU processes each, built and submitted like a user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from higgsc.compiler.compile import compile_spec
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.emit.write import write
from tests.slurm.cluster import Cluster

REPOSITORY = Path(__file__).parent.parent.parent
STANDIN = Path(__file__).parent / "standin"

SPEC = """\
apiVersion: higgsc/v1
name: t
model: {family: higgs-audio-v2, base: builtin:tiny, audio_tokenizer: builtin:tiny}
data: {train: [{path: data.json}]}
hardware: 2x2xCPU
training: {steps: 8, global_batch: {samples: 8}, micro_batch: {samples: 2}, learning_rate: 1e-3}
"""


class Project:
    """A folder with a spec, its build and its run."""

    def __init__(self, cluster: Cluster, root: Path, *, standin: bool = True, run: str = "runs/t") -> None:
        self.cluster, self.root, self.standin = cluster, root, standin
        self.build, self.run = root / "generated/t", root / run

    def write(self, site: Mapping[str, Any], spec: str = SPEC, behaviour: Mapping[str, Any] | None = None) -> None:
        """Write and build the spec."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "spec.yaml").write_text(f"{spec}site: {json.dumps(site)}\n")
        (self.root / "behaviour.json").write_text(json.dumps(behaviour or {}))
        compilation = compile_spec(self.root / "spec.yaml")
        assert compilation.compiled, [diagnostic.message for diagnostic in compilation.diagnostics]
        (build,) = builds_of(compilation)
        write(self.build, emit_all(build))

    @property
    def env(self) -> dict[str, str]:
        """What a user of this project has set when submitting."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        python_path = f"{STANDIN}:{REPOSITORY}" if self.standin else str(REPOSITORY)
        return {**os.environ, **self.cluster.env, "PATH": path, "PYTHONPATH": python_path}

    def submit(self) -> dict[str, str]:
        """Run `submit.sh`; job ids by step, of a chain the last one."""
        script = self.build / "slurm/submit.sh"
        done = subprocess.run(["bash", str(script)], env=self.env, capture_output=True, text=True, check=True)
        return dict(line.split() for line in done.stdout.splitlines())

    def sbatch(self, step: str, *options: str) -> str:
        """Submit one step by hand; its job id."""
        (self.run / "logs").mkdir(parents=True, exist_ok=True)
        script = f"generated/t/slurm/{step}.sbatch"
        return self.cluster.run("sbatch", "--parsable", *options, script, cwd=self.root, env=self.env).strip()

    def state(self, step: str = "train") -> list[str]:
        """The words of a step's state file."""
        path = self.run / "state" / step
        return path.read_text().split() if path.exists() else []

    def steps(self, step: str = "train") -> list[int]:
        """What the stand-in counted, in order."""
        path = self.run / f"{step}.steps"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def log(self, job: str, step: str = "train") -> str:
        return (self.run / f"logs/{step}-{job}.log").read_text("utf-8", errors="replace")

    def variables(self, step: str = "prepare", rank: int = 0) -> dict[str, str]:
        """The environment of a rank of the stand-in."""
        found: dict[str, str] = json.loads((self.run / f"{step}-{rank}.env.json").read_text())
        return found

    def pid(self, rank: int, step: str = "train") -> int:
        """The process id of a rank of the stand-in."""
        return int((self.run / f"pids/{step}-{rank}").read_text().split()[1])


def until(condition: Callable[[], object], timeout: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
