"""Starts real ranks with torchrun; they talk over gloo."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from higgsc.contract.jobs import TrainJob

from .conftest import Project

ROOT = Path(__file__).parents[2]
TRAIN = """
import os
import sys
from pathlib import Path
import torch
from higgsc.contract.jobs import StepContext, load_job
from higgsc.train.step import run

torch.set_num_threads(1)
for path in map(Path, sys.argv[1:]):
    # A store of its own for each job: in torchrun's, ranks would find the addresses of the group before.
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": path.stem}
    job = load_job(path)
    result = run(job, StepContext.of(path, job))
    print("validation", result.figures["validation/audio_loss"])
"""


def torchrun(processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script on several ranks, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, timeout=240, env=environment, check=False
    )


def train(project: Project, processes: int, *jobs: TrainJob) -> subprocess.CompletedProcess[str]:
    """Carry out train jobs one after the other, each on the same ranks in a process group of its own."""
    driver = project.root / "driver.py"
    driver.write_text(TRAIN)
    paths = [project.root / f"{port}.json" for port in _ports(len(jobs))]
    for path, job in zip(paths, jobs, strict=True):
        path.write_text(job.model_dump_json())
    return torchrun(processes, driver, *map(str, paths))


def _ports(count: int) -> list[int]:
    """Free ports that nobody is given who asks the system for any: the last is needed minutes from now."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = random.SystemRandom().randrange(10_000, lowest)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


def errors(finished: subprocess.CompletedProcess[str]) -> str:
    """What the ranks wrote, without torchrun's own report behind it; where one crashed, the stack that it left."""
    written, _, crash = finished.stderr.partition("Fatal Python error")
    return crash[:6000] if crash else written.split("Sending process")[0][-3000:]
