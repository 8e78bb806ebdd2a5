"""How the decoder's layers run: what they keep for the backward pass, and whether they are compiled.

Activation checkpointing: with `full` a layer keeps its input alone and is computed a second time in the backward pass;
with `selective` it also keeps what is dear to compute, the products with the base's weights and the attention, and
computes the rest again: norms, activation functions, the adapters' low-rank products, the attention's mask as numbers,
conversions between number formats. Gradients are the same to the bit, because the same operations run on the same
numbers; dropout's random state is put back.

Compilation: one layer is compiled, and all of them run it (`torch.compile`, regional). transformers' layers sort text
from audio by a boolean mask; the compiler takes shapes that only the data know badly (torch 2.13), and a GPU would be
waited for in every layer. So compiled layers get the positions, which are found once for a row.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError

Mode = Literal["none", "selective", "full"]

_ATEN = torch.ops.aten
_ATTENTION = frozenset(
    {
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
    }
)
MOST_VARIANTS = 64
"""Kinds of layers, by their adapters' ranks and scales, and of batches, that are compiled before it is an error."""


def run_layers(layers: Iterable[nn.Module], job: TrainJob, *, redraws: bool = True) -> None:
    """Make decoder layers checkpoint their activations, and compile them, as the job says.

    In place, before they are sharded: what FSDP2 does before and after a layer has to stay outside.

    Args:
        layers: Of one class.
        job: Also says which products are cheap: those with a dimension of an adapter's rank.
        redraws: Whether dropout draws the same numbers the second time.
    """
    if job.activation_checkpointing == "none" and not job.compile:
        return
    keep = partial(
        _keeping,
        mode=job.activation_checkpointing,
        ranks=frozenset() if job.lora is None else frozenset((job.lora.rank, *job.lora.rank_pattern.values())),
        dropout=redraws and job.lora is not None and job.lora.dropout > 0,
    )
    if not job.compile:
        for layer in layers:
            layer.forward = partial(keep, type(layer).forward, layer)
        return
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    # Beyond the limit torch would go on without compilation, and without a word.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    rows = _Rows()
    run = torch.compile(partial(keep, _sorted_forward), dynamic=True)
    for layer in layers:
        layer.forward = partial(_forward, run, rows, layer)


def _keeping(
    forward: Callable[..., Any],
    layer: nn.Module,
    hidden: Tensor,
    *,
    mode: Mode,
    ranks: frozenset[int],
    dropout: bool,
    **kwargs: Any,
) -> Any:
    if mode == "none" or not torch.is_grad_enabled():
        return forward(layer, hidden, **kwargs)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": dropout}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, ranks=ranks))
    return checkpoint(lambda hidden: forward(layer, hidden, **kwargs), hidden, **options)


class _Rows:
    """The positions of text and audio in a packed row, found once for all layers."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    def of(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of text, of audio, and where each position is found in the two joined; `mask` is `[1, L]`."""
        if self._found is None or self._mask is not mask:
            text, audio = (~mask[0]).nonzero()[:, 0], mask[0].nonzero()[:, 0]
            self._mask, self._found = mask, (text, audio, torch.argsort(torch.cat((text, audio))))
        return self._found


def _forward(
    run: Callable[..., Any], rows: _Rows, layer: nn.Module, hidden: Tensor, *, audio_token_mask: Tensor, **kwargs: Any
) -> Any:
    return run(layer, hidden, rows=rows.of(audio_token_mask), **kwargs)


def _sorted_forward(layer: Any, hidden: Tensor, *, rows: tuple[Tensor, Tensor, Tensor], **kwargs: Any) -> Tensor:
    """What the layer's own `forward` does, with text and audio found beforehand; `hidden` is `[1, L, h]`."""
    text, audio, joined = rows
    flat = hidden[0]
    normed = torch.cat((layer.input_layernorm(flat[text]), layer.audio_input_layernorm(flat[audio])))[joined]
    attended, _ = layer.self_attn(hidden_states=normed[None], **kwargs)
    flat = flat + attended[0]
    update = torch.cat(
        (
            layer.mlp(layer.post_attention_layernorm(flat[text])),
            layer.audio_mlp(layer.audio_post_attention_layernorm(flat[audio])),
        )
    )
    out: Tensor = flat + update[joined]
    return out[None]


def _policy(context: Any, operation: Any, *args: Any, ranks: frozenset[int], **kwargs: Any) -> CheckpointPolicy:
    dear = operation in _ATTENTION or (
        operation is _ATEN.mm.default and not ranks & {args[0].shape[1], args[1].shape[1]}
    )
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def expect_compiler(device: torch.device) -> None:
    """Look for what `torch.compile` needs, before anything is loaded.

    Raises:
        StepError: If there is no C++ compiler, or no Triton for a GPU (66).
    """
    compilers = (
        (os.environ.get("CXX"), "g++", "clang++") if device.type == "cpu" else (os.environ.get("CC"), "gcc", "clang")
    )
    missing = []
    if not any(name and shutil.which(name) for name in compilers):
        missing.append(" or ".join(name for name in compilers if name))
    if device.type == "cuda" and find_spec("triton") is None:
        missing.append("the package triton")
    if missing:
        raise StepError(
            f"`training.compile` needs {' and '.join(missing)}, which this machine lacks",
            code=ExitCode.MISSING_INPUT,
            help="install it, load its module (`site.modules`), or write `compile: false`",
        )
