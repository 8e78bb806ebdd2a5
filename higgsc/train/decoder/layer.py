"""One decoder layer, and the whole decoder, on a packed row."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from higgsc.train.decoder.attention import attend, mask_of
from higgsc.train.decoder.functional import rms_norm, rotary, swiglu
from higgsc.train.decoder.heard import Heard, projector_of
from higgsc.train.decoder.lora import project
from higgsc.train.decoder.routes import Labelled, Routes, Row, permute

Run = Callable[[Any, Tensor, Row], Tensor]


def install(decoder: Any, run: Run | None = None) -> None:
    """Give the layers and the final norm of a `HiggsAudioV2Model` this forward pass for packed rows.

    Parameters and their names stay as they are, and so does what the model computes when it generates speech.

    Args:
        decoder: The model.
        run: What to call for a layer, if not `run_layer`.
    """
    for layer in decoder.layers:
        layer.forward = partial(_forward, layer, run or run_layer)
    decoder.norm.forward = partial(_norm, decoder.norm)


def _forward(layer: Any, run: Run, hidden: Tensor, *arguments: Any, row: Row | None = None, **options: Any) -> Any:
    if row is None:  # speech: with a cache, one token at a time
        return type(layer).forward(layer, hidden, *arguments, **options)
    return run(layer, hidden, row)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden.flatten(0, 1), norm.weight, norm.variance_epsilon).view_as(hidden)


def decode(
    decoder: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    audio_ids: Tensor,
    routes: Routes,
    *,
    labelled: bool = False,
    heard: Heard | None = None,
) -> Tensor:
    """Hidden states of a packed row, after the last norm: `[L, h]`, or `[P + Q, h]` of the labelled tokens alone.

    The last layer then computes for these alone what nothing after it asks for of the others.

    Args:
        decoder: A `HiggsAudioV2Model`, after `install`.
        input_ids: `[1, L]`.
        position_ids: `[1, L]`.
        audio_ids: Codes of the audio rows, `[1, M, 8]`.
        routes: Of the row.
        labelled: Whether the tokens of `routes.labelled` are all that is asked for, in that order.
        heard: What a Whisper heard, for a decoder with a projector.
    """
    embedded = _embed(decoder, input_ids[0], audio_ids[0], routes)
    projector = projector_of(decoder)
    if projector is not None:
        assert heard is not None, "a decoder that listens has heard every row"
        embedded = projector(embedded, heard)
    hidden = embedded[None]
    cos, sin = decoder.rotary_emb(hidden, position_ids)
    half = cos.shape[-1] // 2
    row = Row(
        routes=routes,
        cos=cos[0, :, None, :half].contiguous(),
        sin=sin[0, :, None, :half].contiguous(),
        mask=mask_of(routes, hidden.device, hidden.dtype),
    )
    *layers, last = decoder.layers
    for layer in layers:
        hidden = layer(hidden, row=row)
    normed: Tensor = decoder.norm(last(hidden, row=replace(row, only=routes.labelled) if labelled else row))[0]
    return normed.index_select(0, routes.labelled.places) if labelled and _divided(last) else normed


def _divided(layer: Any) -> bool:
    """Whether the residual stream is divided along the sequence: then it holds all tokens to the end."""
    group = getattr(layer, "tensor_group", None)
    return group is not None and group.sequence


def _embed(decoder: Any, input_ids: Tensor, audio_ids: Tensor, routes: Routes) -> Tensor:
    """Embeddings `[L, h]` of text ids `[L]` and of the codes `[M, 8]` of the audio rows among them."""
    table = decoder.embed_audio_tokens
    codes = nn.functional.embedding_bag(
        audio_ids + table.audio_tokens_offsets, table.embed_audio_tokens.weight, mode="sum"
    )
    texts = decoder.embed_tokens(input_ids.index_select(0, routes.text))
    return permute(torch.cat((texts, codes)), routes.by_place, routes.by_kind)


def run_layer(layer: Any, hidden: Tensor, row: Row, *, in_place: bool = True) -> Tensor:
    """What a `HiggsAudioV2DecoderLayer` computes.

    Args:
        layer: The layer, also one of a tensor group.
        hidden: `[1, L, h]`; with sequence parallelism this process's stretch of it. The result has `row.only` alone,
            unless it is divided.
        row: Where the tokens go.
        in_place: See `project`.
    """
    attention, group = layer.self_attn, getattr(layer, "tensor_group", None)
    length = len(row.routes.by_place)

    def normed(hidden: Tensor, where: Tensor, norm: Any, audio_norm: Any) -> Tensor:
        found = rms_norm(hidden[0], norm.weight, norm.variance_epsilon, other=audio_norm.weight, where=where)
        return found if group is None else group.enter(found[None], length)[0]

    def added(hidden: Tensor, update: Tensor) -> Tensor:
        return hidden + (update[None] if group is None else group.leave(update[None]))

    where = row.routes.is_audio if group is None else group.mine(row.routes.is_audio[None])[0]
    x = normed(hidden, where, layer.input_layernorm, layer.audio_input_layernorm)
    query, key, value = (
        heads.unflatten(-1, (-1, attention.head_dim))
        for heads in project(x, attention.q_proj, attention.k_proj, attention.v_proj, in_place=in_place)
    )
    mixed = attend(rotary(query, row.cos, row.sin), rotary(key, row.cos, row.sin), value, row)
    mixed = mixed.flatten(1)
    kinds: Routes | Labelled = row.routes
    if row.only is not None:
        kinds, places = row.only, row.only.places
    if row.only is not None and not _divided(layer):
        mixed, hidden, where = (rows.index_select(0, places) for rows in (mixed, hidden[0], where))
        hidden = hidden[None]
    hidden = added(hidden, *project(mixed, attention.o_proj, in_place=in_place))

    x = normed(hidden, where, layer.post_attention_layernorm, layer.audio_post_attention_layernorm)
    routes = row.routes
    if row.only is None:
        x = permute(x, routes.by_kind, routes.by_place)
    elif _divided(layer):
        x = x.index_select(0, places)
    # Both run on every row, on no tokens at all if need be: processes that share their weights stay in step.
    networks = zip((layer.mlp, layer.audio_mlp), x.split((len(kinds.text), len(kinds.audio))), strict=True)
    update = torch.cat([_feed_forward(network, part, in_place=in_place) for network, part in networks])
    if row.only is None:
        update = permute(update, routes.by_place, routes.by_kind)
    elif _divided(layer):
        update = update.new_zeros((length, update.shape[1])).index_copy(0, places, update)
    return added(hidden, update)


def _feed_forward(network: Any, x: Tensor, *, in_place: bool) -> Tensor:
    gate, up = project(x, network.gate_proj, network.up_proj, in_place=in_place)
    (output,) = project(swiglu(gate, up), network.down_proj, in_place=in_place)
    return output
