"""The cluster's own words: what belongs to a place rather than to an experiment.

Every value ends up in a script that Slurm and a shell read, so each has a pattern that leaves out what it cannot hold.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from higgsc.spec.base import (
    EnvironmentName,
    EnvironmentValue,
    FilePath,
    ImageName,
    MailAddress,
    ModuleName,
    Mount,
    Name,
    NodeFeatures,
    NodeList,
    SpecModel,
    TimeLimit,
    WordList,
)
from higgsc.spec.kubernetes import Kubernetes


class Container(SpecModel):
    """The container that every step runs in. The project root is mounted at its own path."""

    runtime: Literal["pyxis", "apptainer", "enroot"]
    """`pyxis` uses srun's `--container-image`; the others are called by name on each node."""
    image: ImageName
    """What the runtime takes: a path, or a registry's name such as `docker://org/image:tag`."""
    mounts: tuple[Mount, ...] = ()
    """Folders to mount: `/data`, `/host:/inside` or `/host:/inside:ro`."""


class Site(SpecModel):
    """What belongs to a cluster rather than to an experiment.

    Usually kept in `specs/sites/NAME.yaml` and chosen with `site: NAME`. Values given beside `profile` win over
    those of the file."""

    profile: Name | None = None
    """The file in `specs/sites/`, without `.yaml`."""

    partition: Name | None = None
    """`#SBATCH --partition`."""
    account: Name | None = None
    """`#SBATCH --account`: who pays."""
    qos: Name | None = None
    """`#SBATCH --qos`: quality of service."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    """What an hour of one GPU costs, in whatever currency you count; `higgsc plan` and the report multiply by it."""
    reservation: Name | None = None
    """`#SBATCH --reservation`: nodes set aside for you."""
    constraint: NodeFeatures | None = None
    """`#SBATCH --constraint`: features that the nodes have to have, such as `h100&ib`."""
    exclude: NodeList | None = None
    """`#SBATCH --exclude`: nodes to keep away from, such as `node[07-09],node12`."""
    mail: MailAddress | None = None
    """`#SBATCH --mail-user`: who hears of jobs that fail or are requeued, and of the end of the last one."""

    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How GPUs are asked for: `--gpus-per-node=h100:8`, or `--gres=gpu:h100:8` on older clusters."""
    gpu_type: Name | None = None
    """Slurm's name of the GPUs, as `sinfo -o %G` shows it; only needed where a cluster has several types."""
    cpus_per_node: int | None = Field(default=None, ge=1, le=1024)
    """CPU cores that a job gets on each node; sets `--cpus-per-task` and the OpenMP threads."""
    memory_per_node: int | None = Field(default=None, ge=1, le=65536)
    """Memory that a job gets on each node, in GiB. A step on some of the GPUs gets its share of cores and memory."""
    exclusive: bool = False
    """Whether jobs of several GPUs take whole nodes, with all their memory."""

    time_limit: TimeLimit = "24:00:00"
    """Longest time of one job in Slurm's notation, `[days-]hours:minutes[:seconds]`; 24 hours if not given."""
    signal_lead: int = Field(default=180, ge=60, le=65535)
    """Seconds before the time limit at which training is told to save and stop. Slurm may be 60 s early."""
    max_requeues: int = Field(default=10, ge=0, le=1000)
    """How often an interrupted training may queue itself again; it does so only if it got further than before."""
    chain: int = Field(default=1, ge=1, le=100)
    """Number of training jobs in a row, each taking up what the one before it left; for clusters without requeueing."""
    array_limit: int | None = Field(default=None, ge=1, le=10_000)
    """How many tasks of a job array may run at a time, `--array=0-99%8`: points of a sweep, or shards of an encoding;
    all if not given."""
    launcher: Literal["torchrun", "srun"] = "torchrun"
    """What starts the processes on a node: torchrun as one task a node, or srun as one task a GPU."""

    modules: tuple[ModuleName, ...] = ()
    """Environment modules to load."""
    venv: FilePath | None = None
    """Folder of the Python virtual environment that the steps run in; seen from the project root."""
    conda: FilePath | None = None
    """Name or folder of the conda environment that the steps run in."""
    container: Container | None = None
    """The container that the steps run in."""
    network_interface: WordList | None = None
    """Network between the nodes, such as `ib0`: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME."""
    infiniband: WordList | None = None
    """InfiniBand adapters that NCCL uses, such as `mlx5_0,mlx5_1`: NCCL_IB_HCA."""
    hf_home: FilePath | None = None
    """Where models of the Hugging Face hub are kept: HF_HOME."""
    node_cache: FilePath | None = None
    """A folder on each node's own disk for what compilers of GPU code keep: Triton and TorchInductor."""
    environment: dict[EnvironmentName, EnvironmentValue] = Field(default_factory=dict)
    """More environment variables for the steps, taken literally."""

    kubernetes: Kubernetes | None = None
    """Where and as whom the steps run in a Kubernetes cluster; `null` for a site without one."""
