"""A site against its cluster: what would keep jobs from starting, or a run from surviving.

Pure: the facts come in, the findings go out. `higgsc doctor` shows them all; a job that Slurm refuses with no more
than "Requested node configuration is not available" is explained with the first error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from higgsc.compiler.diagnostics import did_you_mean
from higgsc.launch.built import BuiltResources
from higgsc.launch.slurm.facts import ClusterFacts, NodeFacts

SECONDS_TO_SAVE = 30
"""KillWait below this is too short to write a checkpoint after SIGTERM."""

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or good to know."""

    severity: Severity
    path: str | None
    """Dotted path of the value that it is about, such as `site.partition`; None for the cluster's own settings."""
    message: str
    help: str


def examine(
    site: Mapping[str, Any], resources: Sequence[BuiltResources], cluster: ClusterFacts, *, tasks: int = 1
) -> list[Finding]:
    """Compare a site, and the steps that are to run there, with the cluster.

    Args:
        site: The values of the site, as in `plan.json`; those that are missing or None are not compared.
        resources: What the steps ask for; empty to look at the site alone.
        cluster: From `ask_cluster`.
        tasks: Points of the sweep that is to be submitted as one array.
    """
    findings = list(_partition(site, cluster))
    name = str(site.get("partition") or cluster.default_partition)
    if name in cluster.partitions:
        nodes = [node for node in cluster.nodes if node.partition == name]
        findings += _limits(site, resources, name, cluster.partitions[name])
        findings += _nodes(site, resources, name, nodes)
        findings += _features(site, name, cluster)
    findings += _accounting(site, cluster)
    findings += _settings(cluster, tasks)
    return findings


def _partition(site: Mapping[str, Any], cluster: ClusterFacts) -> Iterator[Finding]:
    known = ", ".join(cluster.partitions)
    wanted = site.get("partition")
    if wanted is None:
        if cluster.default_partition is None:
            message = "the cluster has no default partition, and the site names none"
            yield Finding(severity="error", path="site", message=message, help=f"give `partition:` one of {known}")
        return
    if wanted not in cluster.partitions:
        help_ = did_you_mean(wanted, cluster.partitions) or f"the cluster has {known}"
        message = f"the cluster has no partition `{wanted}`"
        yield Finding(severity="error", path="site.partition", message=message, help=help_)
    elif (state := cluster.partitions[wanted].get("State", "UP")) != "UP":
        up = [name for name, facts in cluster.partitions.items() if facts.get("State") == "UP"]
        message = f"partition `{wanted}` is {state}: jobs will not start"
        help_ = f"those that are up: {', '.join(up) or 'none'}; or ask when it comes back"
        yield Finding(severity="error", path="site.partition", message=message, help=help_)


def _limits(
    site: Mapping[str, Any], resources: Sequence[BuiltResources], name: str, facts: Mapping[str, str]
) -> Iterator[Finding]:
    longest, wanted = minutes(facts.get("MaxTime", "")), minutes(str(site.get("time_limit") or ""))
    if longest is not None and wanted is not None and wanted > longest:
        message = f"time limit {site['time_limit']} is above the {facts['MaxTime']} of partition `{name}`"
        help_ = f'write `time_limit: "{facts["MaxTime"]}"`; a longer training goes on in the next job by itself'
        yield Finding(severity="error", path="site.time_limit", message=message, help=help_)
    most, needed = facts.get("MaxNodes", ""), max((r.nodes for r in resources), default=1)
    if most.isdecimal() and needed > int(most):
        message = f"{needed} nodes are asked for; partition `{name}` gives a job {most} at most"
        yield Finding(
            severity="error", path="hardware", message=message, help=f"use {most} nodes, or more GPUs of each"
        )


def _nodes(
    site: Mapping[str, Any], resources: Sequence[BuiltResources], name: str, nodes: Sequence[NodeFacts]
) -> Iterator[Finding]:
    for wanted in sorted(resources, key=lambda r: (r.gpus_per_node, r.nodes), reverse=True):
        fitting = [node for node in nodes if _gpus(node, wanted.gpu) >= wanted.gpus_per_node]
        if wanted.gpus_per_node and not fitting:
            yield _no_such_gpus(wanted, name, nodes)
            break
        usable = sum(node.usable for node in fitting)
        if len(fitting) < wanted.nodes:
            message = f"{wanted.nodes} nodes are asked for; partition `{name}` has {len(fitting)} that fit"
            yield Finding(
                severity="error",
                path="hardware",
                message=message,
                help=f"use {len(fitting)} nodes, or another partition",
            )
            break
        if usable < wanted.nodes:
            message = f"only {usable} of the {wanted.nodes} nodes needed in partition `{name}` can take jobs now"
            yield Finding(
                severity="warning", path="hardware", message=message, help="`sinfo -R` says why; jobs will wait"
            )
            break
    most = max((node.cpus for node in nodes), default=0)
    if (cpus := site.get("cpus_per_node")) and nodes and cpus > most:
        message = f"{cpus} cores per node are asked for; the nodes of partition `{name}` have {most}"
        yield Finding(
            severity="error", path="site.cpus_per_node", message=message, help=f"write `cpus_per_node: {most}`"
        )
    memory = max((node.memory_mb for node in nodes), default=0) // 1024
    if (wanted_memory := site.get("memory_per_node")) and nodes and wanted_memory > memory:
        message = f"{wanted_memory} GiB per node are asked for; the nodes of partition `{name}` have {memory}"
        help_ = f"write `memory_per_node: {memory}`"
        yield Finding(severity="error", path="site.memory_per_node", message=message, help=help_)
    kinds = {kind for node in nodes for kind in node.gpus}
    if (kind := site.get("gpu_type")) and nodes and str(kind).lower() not in kinds:
        help_ = did_you_mean(str(kind), kinds) or f"they have {', '.join(sorted(kinds - {''})) or 'no typed GPUs'}"
        message = f"no node of partition `{name}` has GPUs of type `{kind}`"
        yield Finding(severity="error", path="site.gpu_type", message=message, help=help_)


def _gpus(node: NodeFacts, model: str | None) -> int:
    """GPUs of a model in a node. A type that Slurm does not name, or a model that the spec does not, fits all."""
    if model is None:
        return sum(node.gpus.values())
    return sum(count for kind, count in node.gpus.items() if not kind or same_model(kind, model))


def same_model(kind: str, model: str) -> bool:
    """Whether Slurm's type (`a100`, `nvidia_h100_80gb_hbm3`) may be the model of a spec (`A100-80GB`, `H100`)."""
    first = re.split(r"[^a-z0-9]", model.lower())[0]
    return first in re.split(r"[^a-z0-9]", kind.lower())


def _no_such_gpus(wanted: BuiltResources, name: str, nodes: Sequence[NodeFacts]) -> Finding:
    kinds = sorted({f"{count}×{kind or 'GPU'}" for node in nodes for kind, count in node.gpus.items()})
    there = f"its nodes have {', '.join(kinds)}" if kinds else "its nodes have no GPUs"
    message = f"{wanted.gpus_per_node}×{wanted.gpu or 'GPU'} per node are asked for; partition `{name}`: {there}"
    help_ = "change `hardware`, or choose a partition with `sinfo -o '%P %G'`"
    return Finding(severity="error", path="hardware", message=message, help=help_)


def _features(site: Mapping[str, Any], name: str, cluster: ClusterFacts) -> Iterator[Finding]:
    wanted, known = site.get("constraint"), cluster.features.get(name, ())
    if wanted and (absent := [word for word in re.findall(r"[\w.-]+", str(wanted)) if word not in known]):
        message = f"no node of partition `{name}` has the feature {', '.join(f'`{word}`' for word in absent)}"
        help_ = f"they have {', '.join(known)}" if known else "its nodes have no features; take `constraint` out"
        yield Finding(severity="error", path="site.constraint", message=message, help=help_)


def _accounting(site: Mapping[str, Any], cluster: ClusterFacts) -> Iterator[Finding]:
    for key, known in (("account", cluster.accounts), ("qos", cluster.qos)):
        wanted = site.get(key)
        if known is None:
            if wanted is not None:
                message = f"{key} `{wanted}` cannot be checked: the cluster has no accounting database that answers"
                help_ = f"a wrong {key} would show as a job that is refused or never starts"
                yield Finding(severity="note", path=f"site.{key}", message=message, help=help_)
        elif wanted is not None and wanted not in known:
            help_ = did_you_mean(wanted, known) or f"yours: {', '.join(known) or 'none'}"
            message = f"you have no {key} `{wanted}` on this cluster"
            yield Finding(severity="error", path=f"site.{key}", message=message, help=help_)


def _settings(cluster: ClusterFacts, tasks: int) -> Iterator[Finding]:
    config = cluster.config
    size = config.get("MaxArraySize", "")
    if size.isdecimal() and tasks > max(1, int(size)):  # the first index is 0; a size of 0 turns arrays off
        message = f"the sweep has {tasks} points; an array has {size} tasks at most here (MaxArraySize)"
        help_ = (
            "split the sweep into several specs, or submit its points one by one: `higgsc submit generated/NAME/POINT`"
        )
        yield Finding(severity="error", path="sweep", message=message, help=help_)
    if config.get("JobRequeue") == "0":
        message = "JobRequeue is 0: jobs are requeued after a node failure only because our scripts ask for it"
        help_ = "nothing to do, unless the site's submit plugin takes `--requeue` out: try it with a short job"
        yield Finding(severity="note", path=None, message=message, help=help_)
    preempts = config.get("PreemptType", "preempt/none") not in ("preempt/none", "(null)", "")
    if preempts and "preempt_send_user_signal" not in config.get("SlurmctldParameters", ""):
        message = "preempted jobs get no warning signal (SlurmctldParameters lacks preempt_send_user_signal)"
        help_ = "lower `checkpoint.every_steps`: what a preempted job did since its last checkpoint is done again"
        yield Finding(severity="warning", path=None, message=message, help=help_)
    wait = re.match(r"\d+", config.get("KillWait", ""))
    if wait and int(wait[0]) < SECONDS_TO_SAVE:
        message = f"KillWait is {wait[0]} s: after `scancel` a job may not have the time to save"
        help_ = "end runs with `higgsc cancel`, which saves a checkpoint first"
        yield Finding(severity="note", path=None, message=message, help=help_)


def minutes(text: str) -> float | None:
    """Minutes of a duration in Slurm's notation; None for `UNLIMITED` and what is no duration."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, first, second, third = match.groups()
    if days is not None:  # days-hours[:minutes[:seconds]]
        return int(days) * 1440 + int(first) * 60 + int(second or 0) + int(third or 0) / 60
    if third is not None:  # hours:minutes:seconds
        return int(first) * 60 + int(second or 0) + int(third) / 60
    return int(first) + int(second or 0) / 60  # minutes[:seconds]
