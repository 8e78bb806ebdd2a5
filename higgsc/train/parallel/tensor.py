"""Tensor parallelism: the matrices of every layer, with their adapters, divided between the processes of a group.

    column-parallel  q, k, v, gate, up   W and B divided by rows (outputs), A whole
    row-parallel     o, down             W and A divided by columns (inputs), B whole

A block thereby takes whole activations and gives summands of its output, of which base and adapter together are
summed once. Each process has its own heads and its own part of both feed-forward networks, `mlp` and `audio_mlp`.
Embeddings, norms and heads are whole on every process, adapters of the heads too.

The gradient of a whole A, and of a whole B, is a sum over the group, because each process sees only what its own
matrices made of it: `Placement.partial`. With sequence parallelism so is that of a norm, which sees a stretch of the
sequence. The gradients of everything else that is whole come out the same on each process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import HiggsAudioV2DecoderLayer

from higgsc.contract.outcome import StepError
from higgsc.train.parallel.collectives import TensorGroup

_COLUMN: Final = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_ROW: Final = frozenset({"o_proj", "down_proj"})


@dataclass(frozen=True, slots=True)
class Placement:
    """How a parameter lies on the processes of a tensor group."""

    dim: int | None
    """Dimension along which it is divided; None if it is whole on each."""
    partial: bool
    """Whether each process has only a summand of its gradient."""


def placement(name: str, *, sequence: bool) -> Placement:
    """Where a parameter lies, by its name in the model, with or without PEFT's words in it."""
    words = name.split(".")
    matrix = next((word for word in words if word in _COLUMN or word in _ROW), None)
    if matrix is None or "layers" not in words:
        return Placement(None, partial=sequence and words[-2].endswith("norm"))
    column = matrix in _COLUMN
    if "lora_A" in words:
        return Placement(None, partial=True) if column else Placement(1, partial=False)
    if "lora_B" in words:
        return Placement(0, partial=False) if column else Placement(None, partial=True)
    # DoRA's magnitudes need the length of whole rows, which a row-parallel matrix has in parts.
    assert words[-2:] in ([matrix, "weight"], ["base_layer", "weight"]), f"{name} cannot be divided"
    return Placement(0 if column else 1, partial=False)


def part(whole: Tensor, where: Placement, group: TensorGroup) -> Tensor:
    """What a process holds of a whole parameter."""
    if where.dim is None:
        return whole
    return whole.chunk(group.size, where.dim)[group.rank].contiguous()


def divide_layers(causal: Any, group: TensorGroup) -> None:
    """Divide the layers of a `HiggsAudioV2ForConditionalGeneration`, with or without adapters, in place.

    Raises:
        StepError: If the group does not divide heads or feed-forward networks.
    """
    config = causal.config
    for size, what in (
        (config.num_attention_heads, "attention heads"),
        (config.num_key_value_heads, "key-value heads"),
        (config.intermediate_size, "features of the feed-forward networks"),
    ):
        if size % group.size:
            raise StepError(
                f"tensor({group.size}) does not divide the base's {size} {what}",
                help="the base differs from the one that the spec was compiled for; check `model.base` and build again",
            )
    decoder = causal.model
    for layer in decoder.layers:
        _divide(layer, group)
        layer.__class__ = TensorParallelLayer
        layer.tensor_group = group
    if group.sequence:
        stretches = _Stretches(group)
        decoder.layers[0].register_forward_pre_hook(stretches.divide)
        decoder.norm.register_forward_hook(stretches.join)


def _divide(layer: nn.Module, group: TensorGroup) -> None:
    for name, parameter in list(layer.named_parameters()):
        where = placement(f"layers.{name}", sequence=group.sequence)
        if where.dim is not None:
            owner, _, own_name = name.rpartition(".")
            # A copy, so that the whole is freed.
            divided = part(parameter.detach(), where, group).clone()
            setattr(layer.get_submodule(owner), own_name, nn.Parameter(divided, parameter.requires_grad))


class _Stretches:
    """Divides the sequence before the first layer, and joins it behind the final norm."""

    def __init__(self, group: TensorGroup) -> None:
        self._group, self._length = group, 0

    def divide(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        self._length = hidden.shape[1]
        return (self._group.divide(hidden), *others)

    def join(self, norm: nn.Module, arguments: tuple[Tensor, ...], normed: Tensor) -> Tensor:
        return self._group.join(normed, self._length)


class TensorParallelLayer(HiggsAudioV2DecoderLayer):  # type: ignore[misc]
    """A decoder layer on one process of a tensor group; computes what transformers' layer computes."""

    tensor_group: TensorGroup

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        audio_token_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The residual stream behind the layer.

        Args:
            hidden_states: `[1, L, h]`; with sequence parallelism this process's stretch of it.
            position_embeddings: Of the whole row.
            attention_mask: Of the whole row.
            audio_token_mask: `[1, L]`, of the whole row; None where all of it is audio, as when speech is generated.
            options: For the attention.
        """
        group, length = self.tensor_group, position_embeddings[0].shape[1]
        if audio_token_mask is None:
            audio_token_mask = hidden_states.new_ones((1, length), dtype=torch.bool)
        audio = group.mine(audio_token_mask)

        normed = _normed(hidden_states, audio, self.input_layernorm, self.audio_input_layernorm)
        attended, _ = self.self_attn(
            hidden_states=group.enter(normed, length),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            **options,
        )
        hidden_states = hidden_states + group.leave(attended)

        normed = _normed(hidden_states, audio, self.post_attention_layernorm, self.audio_post_attention_layernorm)
        entered = group.enter(normed, length)
        # Both networks run even on no rows: what they share with other processes waits for every process.
        text_out, audio_out = self.mlp(entered[~audio_token_mask]), self.audio_mlp(entered[audio_token_mask])
        partial = torch.empty_like(entered)
        partial[~audio_token_mask] = text_out
        partial[audio_token_mask] = audio_out
        return hidden_states + group.leave(partial)


def _normed(hidden: Tensor, audio: Tensor, text_norm: Any, audio_norm: Any) -> Tensor:
    """RMSNorm (Zhang and Sennrich, 2019) with one weight for text and one for audio, as `HiggsAudioV2RMSNorm`."""
    wide = hidden.float()
    scaled = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + text_norm.variance_epsilon)).to(hidden.dtype)
    return torch.where(audio[..., None], audio_norm.weight * scaled, text_norm.weight * scaled)
