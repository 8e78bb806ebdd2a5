"""How the decoder's layers run: what they keep for the backward pass, and whether they are compiled.

Activation checkpointing: with `full` a layer keeps its input alone and is computed a second time in the backward pass;
with `selective` it also keeps what is dear to compute, the products with the base's weights and the attention, and
computes the rest again: norms, activation functions, the adapters' low-rank products, the attention's mask as numbers,
conversions between number formats. Gradients are the same to the bit, because the same operations run on the same
numbers; dropout's random state is put back.

Compilation: one layer is compiled as a single graph, and all of them run it (`torch.compile`, regional).
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.decoder.layer import Run, install, run_layer
from higgsc.train.decoder.routes import Row

Mode = Literal["none", "selective", "full"]

_ATEN = torch.ops.aten
_DEAR = frozenset(
    {
        _ATEN._scaled_mm.default,
        torch.ops.higgsc.segments.default,
        torch.ops.torch_attn._varlen_attn.default,
        torch.ops.higher_order.flex_attention,
    }
)
STACKED = 3
"""Adapters whose first products are one: those of query, key and value."""
MOST_VARIANTS = 64
"""Kinds of layers, by their adapters' ranks and scales, and of batches, that are compiled before it is an error."""


def run_layers(decoder: Any, job: TrainJob, *, redraws: bool = True) -> None:
    """Make the layers of a decoder checkpoint their activations, and compile them, as the job says.

    In place, before they are sharded: what FSDP2 does before and after a layer has to stay outside.

    Args:
        decoder: A `HiggsAudioV2Model`.
        job: Also says which products are cheap: those with a dimension of an adapter's rank.
        redraws: Whether dropout draws the same numbers the second time.
    """
    ranks = set() if job.lora is None else {job.lora.rank, *job.lora.rank_pattern.values()}
    run: Run = partial(
        _keeping,
        mode=job.activation_checkpointing,
        ranks=frozenset(count * rank for rank in ranks for count in range(1, STACKED + 1)),
        dropout=redraws and job.lora is not None and job.lora.dropout > 0,
    )
    if job.compile:
        torch._dynamo.config.recompile_limit = MOST_VARIANTS
        # Beyond the limit torch would go on without compilation, and without a word.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        run = torch.compile(run, dynamic=True, fullgraph=True)
    install(decoder, run)


def _keeping(layer: nn.Module, hidden: Tensor, row: Row, *, mode: Mode, ranks: frozenset[int], dropout: bool) -> Tensor:
    if mode == "none" or not torch.is_grad_enabled():
        return run_layer(layer, hidden, row)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": dropout}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, ranks=ranks))
    # What is kept of a product must not change afterwards.
    in_place = mode != "selective"
    kept: Tensor = checkpoint(lambda hidden: run_layer(layer, hidden, row, in_place=in_place), hidden, **options)
    return kept


def _policy(context: Any, operation: Any, *args: Any, ranks: frozenset[int], **kwargs: Any) -> CheckpointPolicy:
    dear = operation in _DEAR or (operation is _ATEN.mm.default and not ranks & {args[0].shape[1], args[1].shape[1]})
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
