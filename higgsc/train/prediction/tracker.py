"""Counts the memory of a computation, operation by operation, without running it: the tensors may be fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

PARTS = ("base", "adapter", "optimizer", "gradients", "gathered", "activations", "working")
"""What a byte can belong to; see `Tracker`."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all living tensors, operation by operation, and keeps the composition of each phase's peak.

    Parts: `base` and `adapter` parameters (of this process, so its shards if there are any), `optimizer` state,
    `gradients`, `gathered` (parameters that FSDP2 has put together for the moment), `activations` (what the decoder's
    forward pass keeps for the backward pass), and `working`: logits, and everything that comes and goes.
    """

    def __init__(self, owners: Callable[[], Iterator[tuple[str, Tensor]]], *, resized: bool) -> None:
        """
        Args:
            owners: Names the part of tensors that belong to one whatever made them.
            resized: Whether tensors change their size while they live, as FSDP2's gathered parameters do.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, dict[str, int]] = {}
        self.phase = ""
        self.in_decoder = False
        self._owners = owners
        self._part: Any = WeakIdKeyDictionary()
        self._largest: dict[str, int] = {}
        self._bound = 0  # at least what is in use, unless tensors are resized
        self._resized = resized
        for _, tensor in owners():
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor takes itself apart first, and its local operations come back here
        result = func(*args, **(kwargs or {}))
        grew = [self._add(leaf) for leaf in tree_iter(result) if isinstance(leaf, Tensor)]
        if any(grew) and (self._resized or self._bound > self._largest.get(self.phase, 0)):
            self._measure()
        return result

    def _add(self, tensor: Tensor) -> bool:
        storage = _local(tensor).untyped_storage()
        if storage in self._part:
            return False
        self._part[storage] = "working"
        self._bound += storage.nbytes()
        return True

    def keep(self, tensor: Tensor) -> Tensor:
        """Pack hook of autograd: the tensor is being saved for the backward pass."""
        if self.in_decoder:
            self._part[_local(tensor).untyped_storage()] = "activations"
        return tensor

    def settle(self) -> None:
        """The decoder's forward pass is over: what is left of it is kept for the backward pass."""
        for storage, part in list(self._part.items()):
            if part == "working":
                self._part[storage] = "activations"

    def _measure(self) -> None:
        total = self._bound = sum(storage.nbytes() for storage in self._part)
        if total <= self._largest.get(self.phase, 0):
            return
        self._largest[self.phase] = total
        owned = WeakIdKeyDictionary({_local(tensor).untyped_storage(): part for part, tensor in self._owners()})
        peak = self.peaks[self.phase] = dict.fromkeys(PARTS, 0)
        for storage, part in self._part.items():
            peak[owned.get(storage, part)] += storage.nbytes()  # type: ignore[no-untyped-call]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
