"""What Slurm complains about, as a value of the spec."""

from __future__ import annotations

from higgsc.contract.outcome import StepError
from higgsc.launch.built import BuiltStep, Target
from higgsc.launch.scheduler import RefusedError
from higgsc.launch.slurm.client import Answer
from higgsc.launch.slurm.doctor import examine
from higgsc.launch.slurm.facts import ClusterFacts, ask_cluster

_ABOUT = (
    ("reservation", "site.reservation", "`scontrol show reservation` lists them"),
    ("account", "site.account", "`sacctmgr show associations user=$USER` lists your accounts"),
    ("partition", "site.partition", "`sinfo -s` lists the partitions"),
    ("qos", "site.qos", "`sacctmgr show associations user=$USER format=account,qos` lists yours"),
    ("feature", "site.constraint", "`sinfo -o '%n %f'` lists the features of the nodes"),
    ("time", "site.time_limit", "`sinfo -o '%P %l'` lists the time limits"),
    ("node name", "site.exclude", "`sinfo -N` lists the nodes"),
    ("gres", "hardware", "`sinfo -o '%P %G'` lists the GPUs"),
    ("memory", "site.memory_per_node", "`sinfo -o '%P %m'` lists the memory of the nodes, in MB"),
    ("node count", "hardware", "`sinfo -o '%P %D'` counts the nodes"),
    ("node configuration", "hardware", "`sinfo -o '%P %D %c %m %G'` lists what the nodes have"),
    ("job array", "sweep", "`scontrol show config | grep MaxArraySize` says how many tasks an array may have"),
    ("processors", "site.cpus_per_node", "`sinfo -o '%P %c'` lists the cores of the nodes"),
)
"""A word of Slurm's complaint, what it is about, and where to look; the first that occurs counts."""


def cluster_facts() -> ClusterFacts | None:
    """What the cluster says of itself, to explain a refusal with; None where it does not say."""
    try:
        return ask_cluster()
    except StepError:
        return None  # the complaint itself has to do


def refusal(
    target: Target, step: BuiltStep, answer: Answer, facts: ClusterFacts | None, *, tasks: int = 1
) -> RefusedError:
    """Slurm's complaint, with the value that it is about where it says so, or where the cluster's facts do.

    Args:
        target: The build; of an array, that of one of its points.
        step: The step that was to be submitted.
        answer: What `sbatch` said.
        facts: From `cluster_facts`.
        tasks: What an array must have room for: its highest index and one.
    """
    said = answer.complaint.removeprefix("allocation failure: ")
    for finding in examine(target.plan.site, [step.resources], facts, tasks=tasks) if facts is not None else []:
        if finding.severity == "error":
            message = f"{finding.message} (Slurm says: {said})"
            return RefusedError(message, step=step.name, path=finding.path, help=finding.help)
    _, path, help_ = next((row for row in _ABOUT if row[0] in said.lower()), (None, None, None))
    return RefusedError(f"Slurm refuses the job: {said}", step=step.name, path=path, help=help_)
