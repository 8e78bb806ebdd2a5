"""What a process says to others: counted where it is handed to collectives, and where it comes out of sockets."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_NAMESPACES = ("c10d", "_c10d_functional")
_RECEIVED = 128
"""Where `tcpi_bytes_received` is in Linux's `struct tcp_info` (include/uapi/linux/tcp.h)."""


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the collectives that are called while it is entered, and their bytes, by name.

    The bytes of a collective are those of its larger side: of an all-reduce the tensor, of an all-gather what comes
    out, of a reduce-scatter what goes in. How many of them cross a wire is up to the algorithm. All of c10d passes
    here, what DistributedDataParallel calls from C++ as well.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in _NAMESPACES and "wait" not in func.__name__ and "barrier" not in func.__name__:
            bytes_ = max(sum(leaf.nbytes for leaf in tree_iter(arg) if isinstance(leaf, torch.Tensor)) for arg in args)
            name = func.__name__.partition(".")[0].strip("_").replace("_into_tensor", "").replace("_base", "")
            self.calls.setdefault(name.replace("_", ""), []).append(bytes_)
        return func(*args, **(kwargs or {}))


def received() -> int:
    """Bytes that this process's open TCP connections have received; gloo has one to each other rank."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            connection = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # closed since it was listed
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                total += struct.unpack_from("Q", info, _RECEIVED)[0]
    return total
