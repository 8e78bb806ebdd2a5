"""What is wrong with a site, from the facts of a cluster alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from higgsc.launch.built import BuiltResources
from higgsc.launch.slurm.doctor import Finding, examine, minutes, same_model
from higgsc.launch.slurm.facts import ClusterFacts, config_from, gpus_in, nodes_from

NODES = """\
n1|gpu|64|515000|gpu:nvidia_h100_80gb_hbm3:8(S:0-1),nvme:1|idle|h100,ib
n2|gpu|64|515000|gpu:nvidia_h100_80gb_hbm3:8(S:0-1)|drained*|h100,ib
n3|old|32|128000|gpu:2|mixed|(null)
n4|cpu|16+|64000+|(null)|idle|
"""
CONFIG = config_from(
    "Configuration data as of 2026-11-21\nClusterName             = c\nJobRequeue              = 1\n"
    "KillWait                = 120 sec\nMaxArraySize            = 1001\nPreemptType             = preempt/none\n"
)
PARTITIONS = {
    "gpu": {"State": "UP", "MaxTime": "1-00:00:00", "MaxNodes": "2", "Default": "NO"},
    "old": {"State": "DRAIN", "MaxTime": "UNLIMITED", "MaxNodes": "UNLIMITED", "Default": "NO"},
    "cpu": {"State": "UP", "MaxTime": "UNLIMITED", "MaxNodes": "UNLIMITED", "Default": "YES"},
}
NODE_FACTS, FEATURES = nodes_from(NODES)
CLUSTER = ClusterFacts(config=CONFIG, partitions=PARTITIONS, nodes=NODE_FACTS, features=FEATURES)
GOOD = {"partition": "gpu", "time_limit": "24:00:00", "cpus_per_node": 64, "memory_per_node": 500}


def wanted(nodes: int = 1, gpus: int = 8, gpu: str | None = "H100") -> BuiltResources:
    return BuiltResources(nodes=nodes, processes_per_node=max(1, gpus), gpus_per_node=gpus, gpu=gpu)


def look(site: dict[str, Any], *resources: BuiltResources, **changes: Any) -> list[Finding]:
    tasks = changes.pop("tasks", 1)
    return examine({**GOOD, **site}, resources, replace(CLUSTER, **changes), tasks=tasks)


def test_a_site_that_fits_has_no_findings() -> None:
    assert look({}, wanted(), wanted(gpus=0, gpu=None)) == []


@pytest.mark.parametrize(
    "site, resources, changes, severity, path, said, way_out",
    [
        ({"partition": "gpus"}, (), {}, "error", "site.partition", "no partition `gpus`", "did you mean `gpu`?"),
        ({"partition": "old", "cpus_per_node": 32, "memory_per_node": 8}, (), {}, "error", "site.partition",
         "is DRAIN", "gpu, cpu"),
        ({"time_limit": "1-00:01"}, (), {}, "error", "site.time_limit", "above the 1-00:00:00", '"1-00:00:00"'),
        ({"cpus_per_node": 65}, (), {}, "error", "site.cpus_per_node", "have 64", "`cpus_per_node: 64`"),
        ({"memory_per_node": 512}, (), {}, "error", "site.memory_per_node", "have 502", "`memory_per_node: 502`"),
        ({"gpu_type": "h200"}, (), {}, "error", "site.gpu_type", "type `h200`", "nvidia_h100_80gb_hbm3"),
        ({"constraint": "h100&rack9"}, (), {}, "error", "site.constraint", "feature `rack9`", "h100, ib"),
        ({}, (wanted(gpus=16),), {}, "error", "hardware", "16×H100 per node", "sinfo"),
        ({}, (wanted(gpu="A100-80GB"),), {}, "error", "hardware", "8×A100-80GB per node", "sinfo"),
        ({}, (wanted(nodes=2),), {}, "warning", "hardware", "only 1 of the 2 nodes", "sinfo -R"),
        ({"account": "nope"}, (), {"accounts": ("ours",)}, "error", "site.account", "no account `nope`", "yours: ours"),
        ({"account": "ours"}, (), {}, "note", "site.account", "cannot be checked", "refused"),
        ({"qos": "hihg"}, (), {"qos": ("high", "low")}, "error", "site.qos", "no qos `hihg`", "`high`"),
        ({}, (), {"tasks": 1002}, "error", "sweep", "1001 tasks at most", "split"),
        ({}, (), {"config": {**CONFIG, "JobRequeue": "0"}}, "note", None, "JobRequeue is 0", "--requeue"),
        ({}, (), {"config": {**CONFIG, "KillWait": "10 sec"}}, "note", None, "KillWait is 10 s", "higgsc cancel"),
        ({}, (), {"config": {**CONFIG, "PreemptType": "preempt/qos"}}, "warning", None, "no warning signal",
         "every_steps"),
    ],
)  # fmt: skip
def test_each_finding_says_what_to_do(
    site: dict[str, Any],
    resources: tuple[BuiltResources, ...],
    changes: dict[str, Any],
    severity: str,
    path: str | None,
    said: str,
    way_out: str,
) -> None:
    (finding,) = look(site, *resources, **changes)
    assert (finding.severity, finding.path) == (severity, path)
    assert said in finding.message
    assert way_out in finding.help


def test_more_nodes_than_the_partition_gives() -> None:
    findings = look({}, wanted(nodes=3))
    assert [finding.message for finding in findings] == [
        "3 nodes are asked for; partition `gpu` gives a job 2 at most",
        "3 nodes are asked for; partition `gpu` has 2 that fit",
    ]


def test_no_partition_is_the_default_one_or_an_error() -> None:
    site = {"partition": None, "cpus_per_node": 17, "memory_per_node": None}
    (finding,) = look(site)
    assert "partition `cpu` have 16" in finding.message
    partitions = {"gpu": PARTITIONS["gpu"]}
    (finding,) = look(site, partitions=partitions)
    assert finding.path == "site"


def test_durations_gpus_and_models_as_slurm_writes_them() -> None:
    assert [minutes(text) for text in ("UNLIMITED", "90", "90:30", "02:00:00", "1-12", "1-00:30:00")] == [
        None, 90, 90.5, 120, 2160, 1470,
    ]  # fmt: skip
    assert gpus_in("gpu:a100:4(S:0-1),gpu:a100:4(S:2-3),mps:100") == {"a100": 8}
    assert gpus_in("gpu:2") == {"": 2}
    assert gpus_in("(null)") == {}
    assert same_model("nvidia_h100_80gb_hbm3", "H100")
    assert same_model("a100", "A100-80GB")
    assert not same_model("h200", "H100")
