"""What training costs on many GPUs, computed: nothing here is measured.

The volume of what a rank says follows from the shapes, and `scale.py` compares it with what ranks were counted to say.
The time that it takes follows from a `Network`, whose figures are data sheets' times an assumed efficiency, and from
these assumptions:

- A rank computes as fast as `higgsc plan` says, or at a speed that is given; the same on any number of GPUs. Rows are
  of 16,384 tokens, one a step and rank, so that the global batch grows with the GPUs.
- An all-reduce goes in rings: reduce-scatter within the machines, all-reduce of the parts between them, all-gather
  within the machines. NCCL's trees have fewer hops and are not counted on.
- Whole copies: the all-reduce of the adapter's float32 gradients waits for the backward pass, as the trainer has it:
  no overlap at all.
- Sharded within a machine: a layer's weights are fetched while the layer before computes, as far as that lasts; the
  first ones, and the gradients' reduction, are waited for.
- A step takes as long as the rank with the dearest row; rows are those of the trainer's own packer.
- Not counted: votes on whether to stop, every fourth step; machines that are slower than others, a network that others
  use, checkpoints, start and failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from higgsc.catalog.codec import EXTRA_ROWS_PER_CLIP, FRAMES_PER_SECOND
from higgsc.catalog.setup import Setup
from higgsc.contract.jobs import BatchJob
from higgsc.train.rows.tokens import TokenPlan

ROW = 16_384
PER_MACHINE = 8
_FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What connects the GPUs: bytes/s of one GPU in one direction, and seconds of a hop."""

    name: str
    inside: float
    between: float
    efficiency: float = 0.8
    hop_inside: float = 5e-6
    hop_between: float = 15e-6

    @property
    def words(self) -> str:
        """The figures that are assumed."""
        return (
            f"{self.name}: {self.inside / 1e9:g} GB/s a GPU within a machine, {self.between / 1e9:.3g} between them, "
            f"of which {self.efficiency:.0%} are had; {1e6 * self.hop_inside:g} and {1e6 * self.hop_between:g} us a hop"
        )

    def ring(self, size: float, ranks: int, *, between: bool) -> float:
        """Seconds of a reduce-scatter, or of an all-gather, of `size` bytes in a ring of so many ranks."""
        rate, hop = (self.between, self.hop_between) if between else (self.inside, self.hop_inside)
        return (ranks - 1) / ranks * size / (rate * self.efficiency) + (ranks - 1) * hop

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce over the GPUs, in rings within and between machines."""
        inside = min(gpus, PER_MACHINE)
        machines = gpus // inside
        return 2 * self.ring(size, inside, between=False) + 2 * self.ring(size / inside, machines, between=True)


NETWORKS = (
    # NVLink 4: 900 GB/s both ways together (NVIDIA H200 data sheet); one 400 Gb/s adapter a GPU.
    Network(name="NVLink, 400 Gb/s a GPU", inside=450e9, between=50e9),
    Network(name="NVLink, 100 Gb/s a machine", inside=450e9, between=12.5e9 / PER_MACHINE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Bytes that a rank hands to collectives in a step of one micro-batch; the larger side of each."""

    allreduce: int
    allgather: int
    reducescatter: int

    @property
    def calls(self) -> dict[str, int]:
        """By name, those that are used at all."""
        named = {"allreduce": self.allreduce, "allgather": self.allgather, "reducescatter": self.reducescatter}
        return {name: size for name, size in named.items() if size}

    def on_wires(self, setup: Setup) -> float:
        """Bytes that a rank receives, where each collective takes no more than it has to."""
        inside, between = ((ranks - 1) / ranks for ranks in (setup.shard, setup.replicate))
        return inside * (self.allgather + self.reducescatter) + 2 * between * self.allreduce


def volume(setup: Setup) -> Volume:
    """Of whole copies, an all-reduce of the gradients. Of shards, the layers' weights twice and all else once, the
    adapter's gradients to those who hold them, and an all-reduce of what each holds, which FSDP2 asks for even in a
    group of one, where nothing moves."""
    gradients = _FP32 * setup.trained_parameters
    if setup.shard == 1:
        return Volume(allreduce=gradients if setup.replicate > 1 else 0, allgather=0, reducescatter=0)
    layers, root = weights(setup)
    return Volume(allreduce=gradients // setup.shard, allgather=2 * layers + root, reducescatter=gradients)


def weights(setup: Setup) -> tuple[int, int]:
    """Bytes of all layers with their adapters, and of everything else."""
    sizes = {name: setup.base_itemsize * prod(size) for name, size in setup.held.parameters().items()}
    layers = sum(size for name, size in sizes.items() if name.startswith("model.layers."))
    adapters = _FP32 * setup.trained_parameters  # on the layers' matrices alone
    return layers + adapters, sum(sizes.values()) - layers


def step_seconds(setup: Setup, network: Network, compute: float, gpus: int, imbalance: float) -> float:
    """Seconds of a step on so many GPUs, whole copies or shards of a machine's size."""
    dearest = compute * (1 + imbalance)
    gradients = _FP32 * setup.trained_parameters
    if setup.shard == 1:
        return dearest + network.all_reduce(gradients, gpus)
    layers, root = weights(setup)
    one = network.ring(layers / setup.held.layers, setup.shard, between=False)
    gathers, first = 2 * setup.held.layers * one, network.ring(root, setup.shard, between=False) + one
    scatter = network.ring(gradients, setup.shard, between=False)
    reduction = scatter + 2 * network.ring(gradients / setup.shard, gpus // setup.shard, between=True)
    return max(dearest, gathers) + first + reduction


def imbalances(gpus: tuple[int, ...], cost: tuple[float, float]) -> dict[int, float]:
    """How much more the dearest of so many ranks has to compute than the mean one, in rows that the packer makes.

    Args:
        gpus: Numbers of ranks.
        cost: FLOPs of a token beside attention, and of a token's attention to one other.
    """
    random = np.random.default_rng(0)
    seconds = np.clip(random.lognormal(np.log(7), 0.6, (2, 100_000)), 1, 30)
    rows = np.round(seconds * FRAMES_PER_SECOND).astype(np.int64) + EXTRA_ROWS_PER_CLIP
    lengths = rows.sum(axis=0) + np.round(8 * seconds.sum(axis=0)).astype(np.int64) + 25
    found = {}
    for ranks in gpus:
        batch = BatchJob(global_tokens=ranks * ROW, micro_tokens=ROW, accumulation=1)
        plan = TokenPlan(batch, np.arange(len(lengths)), seed=0, world_size=ranks, positions=lengths, cost=cost)
        excess = []
        for step in range(3):
            costs = np.array([plan.cost(row) for row in plan.rows(step)])
            excess.append(costs.max() / costs.mean() - 1)
        found[ranks] = float(np.mean(excess))
    return found
