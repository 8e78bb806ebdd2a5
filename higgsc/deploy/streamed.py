"""A model whose weights stay on disk: every layer reads its own when it is called, some rows at a time.

The classes are transformers' and PEFT's, so that what they compute is theirs: only where a linear layer or an
embedding would look at its weight, it is handed a block of rows, and the outputs are put together. The blocks of a
layer are computed side by side. All is computed in float32, whatever the files hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from threading import local
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.deploy.peft_layers import adapt
from higgsc.deploy.weights import TensorInfo, Weights, open_file
from higgsc.train.model.adapter import MAGNITUDE, PREFIX, WEIGHTS_FILE

_ADAPTER = "default"


def empty_model(config: Mapping[str, Any]) -> Any:
    """A `HiggsAudioV2ForConditionalGeneration` with its text head, its parameters on the meta device."""
    with init_empty_weights(include_buffers=False):
        return HiggsAudioV2ForConditionalGeneration._from_config(
            HiggsAudioV2Config.from_dict(dict(config)),
            use_text_head=True,
            attn_implementation="sdpa",
            dtype=torch.float32,
        )


class StreamedModel:
    """A checkpoint's model, perhaps with an adapter, without their weights in memory."""

    def __init__(self, weights: Weights, config: Mapping[str, Any], *, device: torch.device, pool: Executor) -> None:
        """Put the model together.

        Args:
            weights: Every parameter is among them; see `higgsc.deploy.merge.base.check_base`.
            config: Content of its `config.json`.
            device: Where to compute.
            pool: Its threads compute the blocks; see `higgsc.deploy.workers.workers`.
        """
        self._weights, self._device, self._pool = weights, device, pool
        self._adapter: Weights | None = None
        self._rounded: torch.dtype | None = None
        self.model = empty_model(config).eval()
        """The `HiggsAudioV2ForConditionalGeneration`."""
        self._stream(self.model, weights, "")
        self.model.to(device)

    def _stream(self, model: nn.Module, weights: Weights, prefix: str) -> None:
        """Let the parts of a model find their weights in files, by their names after a prefix; vectors are kept."""
        for name, module in model.named_modules(prefix=prefix):
            for own, parameter in list(module.named_parameters(recurse=False)):
                info = weights.tensors[f"{name}.{own}"]
                if parameter.dim() > 1:
                    # Takes no memory, and yet is on a device, which PEFT puts its own parameters on.
                    value = torch.zeros((), device=self._device).expand(info.shape)
                else:
                    value = self._read(weights, info, 0, info.rows)
                setattr(module, own, nn.Parameter(value, requires_grad=False))
            if isinstance(module, nn.Embedding):
                _set_forward(module, partial(self._embed, weights, weights.tensors[f"{name}.weight"]))
            elif isinstance(module, nn.Linear):
                _set_forward(module, partial(self._project, weights, weights.tensors[f"{name}.weight"]))

    def __deepcopy__(self, memo: object) -> StreamedModel:
        """The layers refer to this; a copy of one, such as PEFT makes, still reads the same files."""
        return self

    def add_adapter(self, folder: Path) -> None:
        """Put PEFT's own layers on the model; they too read their weights when they are called.

        Args:
            folder: An adapter in PEFT's format, for linear layers; see `higgsc.deploy.fit.check_mergeable`.

        Raises:
            StepError: Its two files are not of the same adapter (65).
        """
        self._adapter = open_file(folder, WEIGHTS_FILE)
        adapt(self.model, folder)
        self.model.eval()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                self._stream(module.modules_to_save[_ADAPTER], self._adapter, f"{PREFIX}{name}")
            elif isinstance(module, LoraLinear):
                _set_forward(module, partial(self._in_blocks, module, name, LoraLinear.forward))

    @contextmanager
    def merged_by_peft(self, dtype: torch.dtype) -> Iterator[None]:
        """While it lasts, each layer is what PEFT's own merge makes of it, and every weight rounded to a dtype."""

        def merged(layer: Any, x: Tensor) -> Tensor:
            layer.merge()
            weight = layer.base_layer.weight.data.to(dtype).float()
            layer.merged_adapters.clear()
            return functional.linear(x, weight)

        layers = [(name, module) for name, module in self.model.named_modules() if isinstance(module, LoraLinear)]
        changed = [(layer, layer.forward) for _, layer in layers]
        for name, layer in layers:
            _set_forward(layer, partial(self._in_blocks, layer, name, merged))
        rounded = [p for name, p in self.model.named_parameters() if p.dim() == 1 and "lora_" not in name]
        exact = [parameter.data for parameter in rounded]
        for parameter in rounded:
            parameter.data = parameter.data.to(dtype).float()
        self._rounded = dtype
        try:
            yield
        finally:
            self._rounded = None
            for layer, forward in changed:
                _set_forward(layer, forward)
            for parameter, data in zip(rounded, exact, strict=True):
                parameter.data = data

    def _read(self, weights: Weights, info: TensorInfo, first: int, end: int) -> Tensor:
        rows = weights.read(info, first, end)
        return rows.to(self._rounded or rows.dtype).to(self._device, torch.float32)

    def _embed(self, weights: Weights, info: TensorInfo, ids: Tensor) -> Tensor:
        """Rows of an embedding: only those that are asked for are read."""
        asked, place = torch.unique(ids, return_inverse=True)
        return torch.cat([self._read(weights, info, row, row + 1) for row in asked.tolist()])[place]

    def _project(self, weights: Weights, info: TensorInfo, x: Tensor) -> Tensor:
        return self._joined(x, info, lambda first, end: functional.linear(x, self._read(weights, info, first, end)))

    def _in_blocks(self, layer: Any, name: str, forward: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """A layer of PEFT as if it had only some of its outputs, again and again."""
        adapter = self._adapter
        assert adapter is not None

        def parameter(weights: Weights, info: TensorInfo, first: int, end: int) -> nn.Parameter:
            rows = weights.read(info, first, end).to(self._device, torch.float32)
            return nn.Parameter(rows, requires_grad=False)

        info, stem = self._weights.tensors[f"{name}.weight"], f"{PREFIX}{name}"
        whole = adapter.tensors[f"{stem}.lora_A.weight"]
        a = parameter(adapter, whole, 0, whole.rows)
        copies = local()  # of each thread one: the weights that PEFT's code finds in it come and go

        def block(first: int, end: int) -> Tensor:
            if not hasattr(copies, "layer"):
                copies.layer = _copy(layer)
            own = copies.layer
            own.base_layer.weight = parameter(self._weights, info, first, end)
            own.lora_A[_ADAPTER].weight = a
            own.lora_B[_ADAPTER].weight = parameter(adapter, adapter.tensors[f"{stem}.lora_B.weight"], first, end)
            if _ADAPTER in own.lora_magnitude_vector:
                magnitude = adapter.tensors[f"{stem}{MAGNITUDE}"]
                own.lora_magnitude_vector[_ADAPTER].weight = parameter(adapter, magnitude, first, end)
            return forward(own, x)

        return self._joined(x, info, block)

    def _joined(self, x: Tensor, info: TensorInfo, block: Callable[[int, int], Tensor]) -> Tensor:
        """Outputs of a layer, `[..., rows]`, of those that a block of its rows makes of `x`, `[..., end - first]`."""
        # What a block leaves behind would lie between the rows of the next ones, and break up the threads' memory.
        joined = x.new_empty(*x.shape[:-1], info.rows)

        @torch.inference_mode()
        def one(rows: tuple[int, int]) -> None:
            joined[..., slice(*rows)] = block(*rows)

        list(self._pool.map(one, info.blocks()))
        return joined


def _copy(layer: Any) -> Any:
    """A copy of a layer that shares its tensors, and computes as its class does."""
    forwards = (vars(module)["forward"] for module in layer.modules() if "forward" in vars(module))
    copy = deepcopy(layer, {id(shared): shared for shared in (*layer.parameters(), *forwards)})
    for module in copy.modules():
        # One that refers to its own module would keep it, and the rows in it, until the garbage is collected.
        vars(module).pop("forward", None)
    return copy


def _set_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    module.forward = forward
