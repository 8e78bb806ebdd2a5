"""What a cluster says of itself, on a login node: `scontrol show config`, the partitions, the nodes, the accounts."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from higgsc.contract.outcome import StepError
from higgsc.launch.scheduler import UnreachableError
from higgsc.launch.slurm.client import call
from higgsc.launch.slurm.parse import pairs

UNUSABLE = ("DOWN", "DRAIN", "FAIL", "MAINT", "UNKNOWN", "NO_RESPOND", "FUTURE", "INVAL")
"""Parts of the states in which a node takes no jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node, as a member of one partition."""

    name: str
    partition: str
    cpus: int
    memory_mb: int
    gpus: Mapping[str, int]
    """Number by type as in Slurm's configuration, lowercase; the type is empty where the cluster names none."""
    state: str

    @property
    def usable(self) -> bool:
        return not any(part in self.state.upper() for part in UNUSABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """One cluster."""

    config: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    """`Key=value` of `scontrol show partition`, by name."""
    nodes: tuple[NodeFacts, ...]
    accounts: tuple[str, ...] | None = None
    """That this user may charge; None where the cluster has no accounting to ask."""
    qos: tuple[str, ...] | None = None
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of the nodes of each partition."""

    @property
    def default_partition(self) -> str | None:
        return next((name for name, facts in self.partitions.items() if facts.get("Default") == "YES"), None)


def ask_cluster() -> ClusterFacts:
    """Ask the cluster that this machine belongs to.

    Raises:
        StepError: Slurm's commands are not installed (66).
        UnreachableError: The controller does not answer.
    """
    config = config_from(_said("scontrol", "show", "config"))
    partitions = (pairs(line) for line in _said("scontrol", "show", "partition", "--oneliner").splitlines())
    listing = _said("sinfo", "--Node", "--noheader", "--format=%N|%R|%c|%m|%G|%T|%f")
    nodes, features = nodes_from(listing)
    accounts = _associations()
    return ClusterFacts(
        config=config,
        partitions={found["PartitionName"]: found for found in partitions if "PartitionName" in found},
        nodes=nodes,
        features=features,
        accounts=None if accounts is None else tuple(sorted({account for account, _ in accounts if account})),
        qos=None if accounts is None else tuple(sorted({q for _, names in accounts for q in names.split(",") if q})),
    )


def _said(*argv: str) -> str:
    answer = call(*argv)
    if answer.code != 0:
        raise UnreachableError(f"{' '.join(argv)}: {answer.complaint}")
    return answer.stdout


def config_from(text: str) -> dict[str, str]:
    """`scontrol show config`: a `Key = value` a line."""
    rows = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in rows}


def nodes_from(text: str) -> tuple[tuple[NodeFacts, ...], dict[str, tuple[str, ...]]]:
    """Nodes, and features by partition, of the `sinfo` listing above."""
    nodes: list[NodeFacts] = []
    features: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        name, partition, cpus, memory, gres, state, words = (*line.strip().split("|"), *[""] * 7)[:7]
        nodes.append(
            NodeFacts(
                name=name,
                partition=partition,
                cpus=int(cpus.rstrip("+") or 0),
                memory_mb=int(memory.rstrip("+") or 0),
                gpus=gpus_in(gres),
                state=state,
            )
        )
        given = () if words in ("", "(null)") else tuple(words.split(","))
        features[partition] = tuple(sorted({*features.get(partition, ()), *given}))
    return tuple(nodes), features


def gpus_in(gres: str) -> dict[str, int]:
    """GPUs by type of `gpu:h200:8(S:0-1),nvme:1`, `gpu:2` or `(null)`."""
    found: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        kind, *rest = entry.strip().split(":")
        if kind == "gpu":
            model = rest[0].lower() if len(rest) > 1 else ""
            count = rest[-1] if rest else "1"
            found[model] = found.get(model, 0) + (int(count) if count.isdecimal() else 1)
    return found


def _associations() -> list[tuple[str, str]] | None:
    """Accounts of this user with their QOS; None where there is no accounting."""
    try:
        user = getpass.getuser()
        answer = call("sacctmgr", "-n", "-P", "show", "associations", f"user={user}", "format=account,qos")
    except StepError:
        return None  # not installed here, or its database does not answer: the rest can be examined all the same
    if answer.code != 0 or not answer.stdout.strip():
        return None
    return [(line.partition("|")[0], line.partition("|")[2]) for line in answer.stdout.splitlines()]
