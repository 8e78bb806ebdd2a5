"""Where a plan runs: the shape of the machine and the mesh over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from higgsc.spec.base import SpecModel

_SHAPE = re.compile(r"(?:([1-9][0-9]{0,3})x)?([1-9][0-9]{0,2})(?:x([A-Za-z][A-Za-z0-9-]*))?")


class HardwareShape(SpecModel):
    """Machines of one kind, each with the same number of processors of one kind."""

    nodes: int = Field(default=1, ge=1, le=4096)
    """Number of machines."""
    gpus_per_node: int = Field(ge=1, le=128)
    """GPUs in each machine; with `gpu: CPU`, processes on each machine."""
    gpu: str | None = None
    """GPU type, such as `H200`; `CPU` for a run without GPUs."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cpu" if self.gpu is not None and self.gpu.upper() == "CPU" else "cuda"

    @property
    def world_size(self) -> int:
        """Number of processes: one for each GPU."""
        return self.nodes * self.gpus_per_node

    def __str__(self) -> str:
        """The short form: `8×H200`, `2×8`, `2×8×H100`."""
        parts = [str(self.nodes)] if self.nodes > 1 or self.gpu is None else []
        return "×".join([*parts, str(self.gpus_per_node), *([self.gpu] if self.gpu else [])])


def shape_in(text: str) -> re.Match[str] | None:
    """The parts of a short form: nodes, GPUs of each, type; None if it is none."""
    match = _SHAPE.fullmatch(text)
    return match if match is not None and (match[1] or match[3]) else None


def _read_shape(value: Any) -> Any:
    """Accept `8xH200`, `2x8`, `2x8xH100` and `1xCPU` for the mapping they stand for."""
    if isinstance(value, Mapping):
        return value
    match = shape_in(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"`{value}` is not a hardware shape; write GPUs x type (`8xH200`), nodes x GPUs (`2x8`), "
            "nodes x GPUs x type (`2x8xH100`) or `1xCPU`"
        )
    return {"nodes": int(match[1] or 1), "gpus_per_node": int(match[2]), "gpu": match[3]}


_SHORT_FORM = r"^[1-9][0-9]{0,3}x([1-9][0-9]{0,2}(x[A-Za-z][A-Za-z0-9-]*)?|[A-Za-z][A-Za-z0-9-]*)$"
"""The same for editors: unlike `_SHAPE` it does not match a lone number."""

_ShortForm = Annotated[
    str, StringConstraints(pattern=_SHORT_FORM), Field(examples=["8xH200", "2x8", "2x8xH100", "1xCPU"])
]
Hardware = Annotated[HardwareShape, BeforeValidator(_read_shape, json_schema_input_type=_ShortForm | HardwareShape)]


class Parallelism(SpecModel):
    """How the processes divide the work, as dimensions of a PyTorch DeviceMesh."""

    replicate: int | Literal["auto"] = Field(default="auto")
    """Copies of the model, each on other samples (data parallel); `auto` takes the GPUs that `shard` and
    `tensor` leave."""
    shard: int = Field(default=1, ge=1)
    """Processes that share one copy of the model's weights (FSDP2). 1 is right for LoRA on 80 GB and more."""
    tensor: int = Field(default=1, ge=1)
    """GPUs of one machine that share every layer's matrices, and so a row's activations (tensor parallel). For
    recordings too long for one GPU: unlike `replicate` and `shard`, it exchanges activations in every layer."""
    sequence: bool = Field(default=False)
    """With `tensor` above 1: also shares what lies between the blocks of the layers, along the sequence. Saves memory
    and exchanges no more."""
