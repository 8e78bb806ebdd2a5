"""Training on several processes: a mesh of `replicate` by `shard`.

Gradients are sums, never averages, because the objective already carries the label counts of the whole global
batch (see `loss.py`).

With `shard` 1 every process holds the whole base, and all that moves is one all-reduce of the adapter's gradients
per optimizer step. FSDP2 would do as well, but with a shard group of one process it still copies the frozen base
into its unsharded buffers (torch 2.13, `_fsdp_param_group.py`). With `shard` above 1, FSDP2 shards each decoder
layer, and the rest as one more unit, within a shard group, and all-reduces gradients between the groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from higgsc.contract.jobs import MeshJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.loss import LossModule

START_TIMEOUT = timedelta(minutes=30)
"""How long processes wait for one another at the start: one may still be downloading the base."""
STEP_TIMEOUT = "HIGGSC_STEP_TIMEOUT"
"""Environment variable: seconds that they wait from the first step on, 300 if not set. One that hangs longer fails the
training on all of them."""
_FAILED = -1


class Mesh:
    """The processes of a training; with one process, everything here is a no-op.

    Attributes:
        device: Where this process computes.
        rank: Number of this process.
        world_size: Processes.
    """

    def __init__(self, job: MeshJob, *, device: torch.device, rank: int, devices: DeviceMesh | None) -> None:
        self.device, self.rank, self.world_size = device, rank, job.replicate * job.shard
        self._devices = devices
        self._sharded = job.shard > 1

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
        return self._sharded

    def distribute(self, module: LossModule) -> None:
        """Shard a module's parameters, in place; to be done before an optimizer sees them."""
        if not self._sharded:
            return
        for layer in module.causal.model.layers:
            fully_shard(layer, mesh=self._devices)
        fully_shard(module, mesh=self._devices)
        register_fsdp_forward_method(module, "generate")

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on; undoes the average that FSDP2 takes over the processes."""
        # FSDP2's own switch for sums, set_gradient_divide_factor, needs an operation that gloo lacks.
        return loss * self.world_size if self._sharded else loss

    def accumulate(self, module: nn.Module, *, last: bool) -> None:
        """Say before a micro-batch whether it is the last of its optimizer step: only then do gradients move."""
        if self._sharded:
            assert isinstance(module, FSDPModule), "distribute the module first"
            module.set_requires_gradient_sync(last)

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the processes, after the last micro-batch; FSDP2 has already done it."""
        if self._sharded or self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters), "every adapter takes part in every batch"
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def minimum(self, values: Tensor) -> Tensor:
        """Element-wise minimum of a tensor over the processes."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; every process has to ask."""
        if self.world_size == 1:
            return flag
        return bool(self._reduced(torch.tensor(int(flag), device=self.device), dist.ReduceOp.MAX))

    def gather(self, values: Tensor) -> list[list[float]]:
        """Every process's values `[n]`, by rank; every process has to ask."""
        if self.world_size == 1:
            return [values.tolist()]
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values)
        return [part.tolist() for part in parts]

    def gather_rows(self, values: Tensor) -> Tensor:
        """The rows `[n, ...]` of every process, in order, `[N, ...]`, with gradient; every process has to ask."""
        if self.world_size == 1:
            return values
        rows: Tensor = _GatherRows.apply(values, self.rank, self.world_size)  # type: ignore[no-untyped-call]
        return rows

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

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter's full value, on its device; every process has to ask for it. Without shards, no copy."""
        value = tensor.detach()
        return value.full_tensor() if isinstance(value, DTensor) else value

    def local(self, tensor: Tensor) -> Tensor:
        """What this process holds of a parameter."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """What this process holds of a full value, where it lies like that parameter: the inverse of `whole`."""
        value = whole.to(self.device)
        if isinstance(like, DTensor):
            return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
        return value

    def expect_steps(self) -> None:
        """From here on the processes work at one pace, so that one that hangs is noticed soon."""
        if self._devices is None:
            return
        groups = (None, *(self._devices.get_group(name) for name in self._devices.mesh_dim_names or ()))
        for group in groups:
            _set_pg_timeout(step_timeout(), group)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.world_size == 1:
            return values
        result = values.clone()
        dist.all_reduce(result, operation)
        return result


class _GatherRows(torch.autograd.Function):
    """All-gather; what comes back for a row is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rank: int, size: int) -> Tensor:
        ctx.own = slice(rank * len(values), (rank + 1) * len(values))
        parts = [torch.empty_like(values) for _ in range(size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.own], None, None


@contextmanager
def open_mesh(job: MeshJob, device_type: str, *, rank: int, world_size: int) -> Iterator[Mesh]:
    """Join the processes that torchrun started (`gloo` on CPUs, `nccl` on GPUs), and leave them at the end.

    Raises:
        StepError: If there are more or fewer processes than the mesh needs, or if there is no GPU to use.
    """
    if job.replicate * job.shard != world_size:
        raise StepError(
            f"replicate({job.replicate}) * shard({job.shard}) = {job.replicate * job.shard} "
            f"!= {world_size} process{'es' if world_size > 1 else ''}",
            code=ExitCode.USAGE,
            help=f"start it with torchrun and {job.replicate * job.shard} processes in all",
        )
    device = _pick_device(device_type)
    if world_size == 1:
        yield Mesh.single(device)
        return
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=START_TIMEOUT)
    try:
        devices = init_device_mesh(device_type, (job.replicate, job.shard), mesh_dim_names=("replicate", "shard"))
        yield Mesh(job, device=device, rank=rank, devices=devices)
    finally:
        dist.destroy_process_group()


def step_timeout() -> timedelta:
    """How long processes wait for one another from the first step on.

    Raises:
        StepError: If the environment says something that is no time.
    """
    value = os.environ.get(STEP_TIMEOUT, "300")
    try:
        timeout = timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        timeout = timedelta(0)
    if timeout < timedelta(seconds=1):
        raise StepError(
            f"{STEP_TIMEOUT} is `{value}`, which is not a number of seconds above 1",
            code=ExitCode.USAGE,
            help=f"unset it, or write {STEP_TIMEOUT}=300",
        )
    return timeout


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone or has not answered in time; backends have no type for it."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "TCPStore"))


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
