"""Training on several processes: a mesh of `replicate` by `shard` by `tensor`.

Gradients are sums, never averages, because the objective already carries the label counts of the whole global
batch (see `objective/loss.py`).

With `shard` 1 every process holds the whole base, and all that moves is one all-reduce of the adapter's gradients
per optimizer step. FSDP2 would do as well, but with a shard group of one process it still copies the frozen base
into its unsharded buffers (torch 2.13, `_fsdp_param_group.py`). With `shard` above 1, FSDP2 shards each decoder
layer, and the rest as one more unit, within a shard group, and all-reduces gradients between the groups.

Where all parameters are trained, FSDP2 holds them on every mesh, also in shard groups of one and in one process: they
and their gradients are float32, and what it gathers to compute with is in the base's number format. So there is one
kind of mixed precision, not one for each mesh. Gradients then move after every micro-batch: to wait for the last one
would take a whole copy of them on every process.

With `tensor` above 1, the layers are divided first (`tensor.py`); what a process then holds is an ordinary
parameter to everything above. The processes of a tensor group have neighbouring ranks, so they are on one machine, see
the same samples, and draw the same dropout. What is said of data below means the processes across these groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from higgsc.contract.jobs import MeshJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.objective.loss import LossModule
from higgsc.train.parallel.collectives import TensorGroup, gather_rows
from higgsc.train.parallel.contact import START_TIMEOUT, step_timeout
from higgsc.train.parallel.tensor import Placement, divide_layers, part, placement

_FAILED = -1


class Mesh:
    """The processes of a training; with one process, everything here is a no-op.

    Attributes:
        device: Where this process computes.
        rank: Number of this process.
        world_size: Processes.
        data_rank: Number of the samples' share that this process trains on, with the rest of its tensor group.
        data_size: Shares: replicate x shard.
    """

    def __init__(
        self, job: MeshJob, *, device: torch.device, rank: int, devices: DeviceMesh | None, everything: bool = False
    ) -> None:
        self.device, self.rank, self.world_size = device, rank, job.processes
        self.data_rank, self.data_size = rank // job.tensor, job.data_parallel
        self._devices = devices
        self._sharded, self._everything = job.shard > 1 or everything, everything
        self._data_devices = None if devices is None else devices["replicate", "shard"]
        self._data_group: dist.ProcessGroup | None = None  # all processes
        self._tensor: TensorGroup | None = None
        if job.tensor > 1:
            assert devices is not None
            assert self._data_devices is not None
            self._data_group = self._data_devices._flatten("data").get_group()
            group = devices.get_group("tensor")
            self._tensor = TensorGroup(group, rank % job.tensor, job.tensor, job.sequence)

    @classmethod
    def single(cls, device: torch.device) -> Mesh:
        """A mesh of this process alone."""
        return cls(MeshJob(replicate=1, shard=1), device=device, rank=0, devices=None)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    @property
    def in_step(self) -> bool:
        """Whether a forward pass of one process needs those of others at the same time."""
        return self._sharded or self._tensor is not None

    def divide(self, module: LossModule) -> None:
        """Divide a module's layers within tensor groups, in place; the first thing to do with them.

        Raises:
            StepError: If the tensor group does not divide the layers.
        """
        if self._tensor is not None:
            divide_layers(module.causal, self._tensor)

    def distribute(self, module: LossModule, compute: torch.dtype | None = None) -> None:
        """Shard a module's parameters, in place; to be done after `divide`, before an optimizer sees them.

        Args:
            module: The model with its loss.
            compute: Number format of gathered parameters, where it is not the parameters' own.
        """
        if not self._sharded:
            return
        policy = MixedPrecisionPolicy() if compute is None else MixedPrecisionPolicy(compute, torch.float32)
        for unit in (*module.causal.model.layers, module):
            fully_shard(unit, mesh=self._data_devices, mp_policy=policy)
        register_fsdp_forward_method(module, "generate")

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on; undoes the average that FSDP2 takes over the processes."""
        # FSDP2's own switch for sums, set_gradient_divide_factor, needs an operation that gloo lacks.
        return loss * self.data_size if self._sharded else loss

    def accumulate(self, module: nn.Module, *, last: bool) -> None:
        """Say before a micro-batch whether it is the last of its optimizer step: an adapter's gradients wait for it."""
        if self._sharded and not self._everything:
            assert isinstance(module, FSDPModule), "distribute the module first"
            module.set_requires_gradient_sync(last)

    def reduce_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Sum the gradients over the processes, after the last micro-batch, whatever FSDP2 has not summed.

        Args:
            parameters: The trainable ones, by their names in the model.
        """
        if not self._sharded and self.data_size > 1:
            _all_reduce(_gradients(parameters.values()), self._data_group)
        if self._tensor is None:
            return
        whole = {name: parameter for name, parameter in parameters.items() if self._placement(name).dim is None}
        gradients = _gradients(whole.values())
        for name, gradient in zip(whole, gradients, strict=True):
            if not self._placement(name).partial:
                # The same on each process of the group, or nearly: the mean keeps their parameters the same.
                gradient.div_(self._tensor.size)
        _all_reduce(gradients, self._tensor.group)

    def clip_gradients(self, parameters: Mapping[str, nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients down to an L2 norm of `max_norm` over all parameters, each counted once over the processes.

        Args:
            parameters: The trainable ones, by their names in the model; their gradients have been summed.
            max_norm: The largest norm that is left as it is.

        Returns:
            The norm before, a scalar on the parameters' device; not finite if any gradient is not.
        """
        if self._tensor is None:
            return _full(nn.utils.clip_grad_norm_(parameters.values(), max_norm))
        norms: dict[bool, Tensor] = {}
        for divided in (False, True):
            named = [p.grad for name, p in parameters.items() if (self._placement(name).dim is not None) is divided]
            norms[divided] = _full(nn.utils.get_total_norm([gradient for gradient in named if gradient is not None]))
        norm = (norms[False].square() + self._tensor.summed(norms[True].square())).sqrt()
        torch._foreach_mul_(_gradients(parameters.values()), (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the shares of the data."""
        return values if self.data_size == 1 else _reduced(values, dist.ReduceOp.SUM, self._data_group)

    def minimum(self, values: Tensor) -> Tensor:
        """Element-wise minimum of a tensor over the processes."""
        return values if self.world_size == 1 else _reduced(values, dist.ReduceOp.MIN)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; every process has to ask."""
        if self.world_size == 1:
            return flag
        return bool(_reduced(torch.tensor(int(flag), device=self.device), dist.ReduceOp.MAX))

    def gather(self, values: Tensor) -> list[list[float]]:
        """The values `[n]` of every share of the data, in order; every process has to ask."""
        if self.data_size == 1:
            return [values.tolist()]
        parts = [torch.empty_like(values) for _ in range(self.data_size)]
        dist.all_gather(parts, values, group=self._data_group)
        return [part.tolist() for part in parts]

    def gather_rows(self, values: Tensor) -> Tensor:
        """The rows `[n, ...]` of all shares of the data, `[N, ...]`, with gradient; every process has to ask."""
        if self.data_size == 1:
            return values
        return gather_rows(values, self.data_rank, self.data_size, self._data_group)

    def on_first(self, work: Callable[[], int]) -> int:
        """Let the first process do something while the others wait; every process gets its answer, 0 or above.

        Raises:
            StepError: On the others, if it failed on the first, which raises its own error.
        """
        if self.world_size == 1:
            return work()
        answer = torch.tensor(_FAILED, device=self.device)
        if self.is_first:
            try:
                answer.fill_(work())
            except BaseException:
                dist.broadcast(answer, 0)
                raise
        dist.broadcast(answer, 0)
        if int(answer) == _FAILED:
            raise StepError("the first process failed; its message says why", code=ExitCode.IO)
        return int(answer)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The full value of the parameter of that name, or of a moment of it, on its device; all processes have to ask.

        A process that holds all of it gets it without a copy.
        """
        value = _full(tensor.detach())
        dim = self._placement(name).dim
        if dim is not None and self._tensor is not None:
            value = self._tensor.gathered(value, dim)
        return value

    def local(self, tensor: Tensor) -> Tensor:
        """What this process holds of a parameter."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def shape(self, name: str, parameter: Tensor) -> torch.Size:
        """The full shape of a parameter."""
        sizes = list(parameter.shape)
        dim = self._placement(name).dim
        if dim is not None and self._tensor is not None:
            sizes[dim] *= self._tensor.size
        return torch.Size(sizes)

    def part(self, name: str, whole: Tensor, like: Tensor) -> Tensor:
        """What this process holds of a full value, where it lies like that parameter: the inverse of `whole`."""
        value = whole.to(self.device)
        if self._tensor is not None:
            value = part(value, self._placement(name), self._tensor)
        if isinstance(like, DTensor):
            return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
        return value

    def expect_steps(self) -> None:
        """From here on the processes work at one pace, so that one that hangs is noticed soon."""
        if self._devices is None:
            return
        names = self._devices.mesh_dim_names or ()
        for group in (None, self._data_group, *(self._devices.get_group(name) for name in names)):
            _set_pg_timeout(step_timeout(), group)

    def _placement(self, name: str) -> Placement:
        if self._tensor is None:
            return Placement(None, partial=False)
        return placement(name, sequence=self._tensor.sequence)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """What this process holds of the gradients."""
    gradients = [parameter.grad for parameter in parameters]
    found = [gradient for gradient in gradients if gradient is not None]
    assert len(found) == len(gradients), "every trained parameter takes part in every batch"
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in found]


def _all_reduce(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Sum tensors in place, all at once."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def _reduced(values: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None = None) -> Tensor:
    result = values.clone()
    dist.all_reduce(result, operation, group=group)
    return result


@contextmanager
def open_mesh(
    job: MeshJob, device_type: str, *, rank: int, world_size: int, everything: bool = False
) -> Iterator[Mesh]:
    """Join the processes that torchrun started (`gloo` on CPUs, `nccl` on GPUs), and leave them at the end.

    Args:
        job: Sizes of the mesh.
        device_type: `cpu` or `cuda`.
        rank: Number of this process.
        world_size: Processes.
        everything: Whether all parameters are trained; then even a process alone is a group.

    Raises:
        StepError: If there are more or fewer processes than the mesh needs, or if there is no GPU to use.
    """
    if job.processes != world_size:
        sizes = f"replicate({job.replicate}) * shard({job.shard})"
        sizes += f" * tensor({job.tensor})" if job.tensor > 1 else ""
        raise StepError(
            f"{sizes} = {job.processes} != {world_size} process{'es' if world_size > 1 else ''}",
            code=ExitCode.USAGE,
            help=f"start it with torchrun and {job.processes} processes in all",
        )
    device = _pick_device(device_type)
    if world_size == 1 and not everything:
        yield Mesh.single(device)
        return
    alone: dict[str, Any] = {"store": HashStore(), "rank": 0, "world_size": 1} if world_size == 1 else {}
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=START_TIMEOUT, **alone)
    try:
        yield Mesh(job, device=device, rank=rank, devices=device_mesh(job, device_type), everything=everything)
    finally:
        dist.destroy_process_group()


def device_mesh(job: MeshJob, device_type: str) -> DeviceMesh:
    """The processes as an array; ranks of a tensor group are neighbours. Needs the default process group."""
    sizes = {"replicate": job.replicate, "shard": job.shard, "tensor": job.tensor}
    return init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _pick_device(device_type: str) -> torch.device:
    if device_type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StepError(
            "the job trains on GPUs, but torch sees none on this machine",
            code=ExitCode.MISSING_INPUT,
            help="submit it to a machine with GPUs, or build the spec for CPUs",
        )
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= gpus:
        raise StepError(
            f"process {local_rank} of this machine has no GPU of its own: torch sees {gpus}",
            code=ExitCode.MISSING_INPUT,
            help="start one process per GPU",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
