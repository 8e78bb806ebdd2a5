"""The cluster that the other tests run on is one."""

from __future__ import annotations

from tests.slurm.cluster import Cluster


def test_two_nodes_with_names_and_gpus_of_their_own(cluster: Cluster) -> None:
    script = "echo $(hostname) $CUDA_VISIBLE_DEVICES; getent hosts node2 | wc -l"
    said = cluster.run("srun", "--nodes=2", "--gpus-per-node=h200:2", "bash", "-c", script)
    assert sorted(said.split("\n")) == ["", "1", "1", "node1 0,1", "node2 0,1"]


def test_a_node_without_power_comes_back(cluster: Cluster) -> None:
    cluster.node_kill("node2")
    cluster.node_up("node2")
    assert cluster.run("srun", "--nodelist=node2", "hostname") == "node2\n"
