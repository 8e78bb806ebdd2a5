"""The real steps on a real cluster: two nodes with two processes each, interrupted in the middle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.project import REPOSITORY, Project, until

SPEC = f"""\
apiVersion: higgsc/v1
name: t
model: {{family: higgs-audio-v2, base: builtin:tiny, audio_tokenizer: builtin:tiny}}
data:
  train: [{{path: {REPOSITORY}/specs/data/quickstart/train_chatml.json}}]
  validation: {{fraction: 0.1}}
hardware: 2x2xCPU
precision: fp32
training:
  steps: 30
  global_batch: {{samples: 4}}
  micro_batch: {{samples: 1}}
  learning_rate: 5e-3
  warmup_steps: 2
  log_every_steps: 1
checkpoint: {{every_steps: 15}}
merge: {{select: last, dtype: fp32}}
evaluate: {{samples: 1, prompts: training, temperature: 0}}
"""


@pytest.mark.slow
def test_an_interrupted_training_is_finished_merged_and_evaluated(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path, standin=False)
    project.write({"network_interface": "lo", "cpus_per_node": 2}, SPEC)
    jobs = project.submit()
    metrics = project.run / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 5, timeout=180)
    cluster.run("scancel", "--signal=USR1", "--batch", jobs["train"])
    until(lambda: project.state()[0] == "interrupted", timeout=60)
    stopped = int(project.state()[1])
    assert 0 < stopped < 30
    cluster.wait(jobs["train"], "COMPLETED", timeout=180)
    assert cluster.job(jobs["train"])["Restarts"] == "1"
    assert project.state() == ["done", "30", "30"]
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss/total" in row]
    assert steps == list(range(1, 31))
    cluster.wait(jobs["evaluate"], "COMPLETED", timeout=180)
    assert (project.run / "merged/model.safetensors").is_file()
