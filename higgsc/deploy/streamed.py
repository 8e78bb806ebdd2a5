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
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.deploy.weights import TensorInfo, Weights

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
    """A checkpoint's model without its weights in memory, perhaps with an adapter, which is."""

    def __init__(self, weights: Weights, config: Mapping[str, Any], *, device: torch.device, pool: Executor) -> None:
        """Put the model together.

        Args:
            weights: Every parameter is among them; see `higgsc.deploy.merge.base.check_base`.
            config: Content of its `config.json`.
            device: Where to compute.
            pool: Its threads compute the blocks; see `higgsc.deploy.workers.workers`.
        """
        self._weights, self._device, self._pool = weights, device, pool
        self._rounded: torch.dtype | None = None
        self.model = empty_model(config).eval()
        """The `HiggsAudioV2ForConditionalGeneration`."""
        for name, module in self.model.named_modules():
            for own, parameter in list(module.named_parameters(recurse=False)):
                info = weights.tensors[f"{name}.{own}"]
                if parameter.dim() > 1:
                    # Takes no memory, and yet is on a device, which PEFT puts its own parameters on.
                    value = torch.zeros((), device=device).expand(info.shape)
                else:
                    value = self._read(info, 0, info.rows)
                setattr(module, own, nn.Parameter(value, requires_grad=False))
            if isinstance(module, nn.Embedding):
                _set_forward(module, partial(self._embed, weights.tensors[f"{name}.weight"]))
            elif isinstance(module, nn.Linear):
                _set_forward(module, partial(self._project, weights.tensors[f"{name}.weight"]))
        self.model.to(device)

    def __deepcopy__(self, memo: object) -> StreamedModel:
        """The layers refer to this; a copy of one, such as PEFT makes, still reads the same files."""
        return self

    def add_adapter(self, adapter: Path) -> None:
        """Put PEFT's own layers on the model; the base's matrices still stay on disk.

        Args:
            adapter: Folder in PEFT's format.
        """
        PeftModel.from_pretrained(self.model, str(adapter), torch_device=str(self._device), low_cpu_mem_usage=True)
        self.model.eval()
        for name, layer in self._adapted():
            _set_forward(
                layer, partial(self._in_blocks, layer, self._weights.tensors[f"{name}.weight"], LoraLinear.forward)
            )
        for whole in self._trained_whole():
            whole.weight.data = whole.weight.data.float()
            _set_forward(whole, partial(type(whole).forward, whole))  # a copy, with a weight of its own

    @contextmanager
    def merged_by_peft(self, dtype: torch.dtype) -> Iterator[None]:
        """While it lasts, each layer is what PEFT's own merge makes of it, and every weight rounded to a dtype."""

        def merged(layer: Any, x: Tensor) -> Tensor:
            layer.merge()
            weight = layer.base_layer.weight.data.to(dtype).float()
            layer.merged_adapters.clear()
            return functional.linear(x, weight)

        changed = [(layer, layer.forward) for _, layer in self._adapted()]
        for name, layer in self._adapted():
            _set_forward(layer, partial(self._in_blocks, layer, self._weights.tensors[f"{name}.weight"], merged))
        norms = [p for name, p in self.model.named_parameters() if p.dim() == 1 and "lora_" not in name]
        rounded = [*norms, *(whole.weight for whole in self._trained_whole())]
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

    def _adapted(self) -> list[tuple[str, Any]]:
        return [(name, module) for name, module in self.model.named_modules() if isinstance(module, LoraLinear)]

    def _trained_whole(self) -> list[Any]:
        wrappers = (module for module in self.model.modules() if isinstance(module, ModulesToSaveWrapper))
        return [wrapper.modules_to_save[_ADAPTER] for wrapper in wrappers]

    def _read(self, info: TensorInfo, first: int, end: int) -> Tensor:
        rows = self._weights.read(info, first, end)
        return rows.to(self._rounded or rows.dtype).to(self._device, torch.float32)

    def _embed(self, info: TensorInfo, ids: Tensor) -> Tensor:
        """Rows of an embedding: only those that are asked for are read."""
        asked, place = torch.unique(ids, return_inverse=True)
        return torch.cat([self._read(info, row, row + 1) for row in asked.tolist()])[place]

    def _project(self, info: TensorInfo, x: Tensor) -> Tensor:
        return self._joined(info, lambda first, end: functional.linear(x, self._read(info, first, end)))

    def _in_blocks(self, layer: Any, info: TensorInfo, forward: Callable[[Any, Tensor], Tensor], x: Tensor) -> Tensor:
        """A layer of PEFT as if it had only some of its outputs, again and again."""

        copies = local()  # of each thread one: the weights that PEFT's code finds in it come and go

        def block(first: int, end: int) -> Tensor:
            if not hasattr(copies, "layer"):
                copies.layer = _copy(layer)
            own = copies.layer
            rows = self._weights.read(info, first, end).to(self._device, torch.float32)
            own.base_layer.weight = nn.Parameter(rows, requires_grad=False)
            _set_forward(own.base_layer, partial(nn.Linear.forward, own.base_layer))
            for name in ("lora_B", "lora_magnitude_vector"):
                for key, whole in getattr(layer, name).items():
                    if key == _ADAPTER:
                        getattr(own, name)[key].weight = nn.Parameter(whole.weight[first:end], requires_grad=False)
            return forward(own, x)

        return self._joined(info, block)

    def _joined(self, info: TensorInfo, block: Callable[[int, int], Tensor]) -> Tensor:
        @torch.inference_mode()
        def one(rows: tuple[int, int]) -> Tensor:
            return block(*rows)

        return torch.cat(list(self._pool.map(one, info.blocks())), dim=-1)


def _copy(layer: Any) -> Any:
    """A copy of a layer that shares its tensors."""
    return deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})


def _set_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    module.forward = forward
