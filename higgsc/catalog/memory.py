"""What the training of an adapter costs in memory: closed forms over a model's shape.

For the training of a whole model see `memory_whole.py`.

The formulas follow the trainer as it is (transformers' layers run eagerly, PEFT adapters in float32, autocast to
bfloat16, packed rows, attention by `scaled_dot_product_attention` with a dense block mask). They were read off a trace
of that trainer on fake tensors, and `higgsc plan --verify` traces it again and compares. Bytes are bytes, GB are 10^9.

Symbols: `h` hidden size, `a` attention width (heads x head size), `f` inner width of a feed-forward network, `r` LoRA
rank, `s` bytes of a number of the base (2 in bf16, 4 in fp32), `L` tokens of a packed row, `n` samples in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Literal

from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape
from higgsc.catalog.memory_parts import Memory
from higgsc.catalog.memory_whole import memory_of_whole
from higgsc.catalog.setup import Sample, Setup

_FP32 = 4
_LAYERS = "model.layers."
_SHARED_INPUT = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}

Route = Literal["all", "text", "audio"]
"""Tokens that pass through a module: those of the row, or those of one of the two feed-forward networks."""
_ROUTES: tuple[Route, ...] = ("all", "text", "audio")


def _route(module: str) -> Route:
    return "audio" if ".audio_mlp." in module else "text" if ".mlp." in module else "all"


def _through(sample: Sample) -> dict[Route, int]:
    """Tokens of a sample that pass through the modules of a route."""
    return {"all": sample.tokens, "text": sample.text, "audio": sample.audio_rows}


def memory(setup: Setup, sample: Sample, samples: int) -> Memory:
    """Peak memory of a process that trains on rows of `samples` equal samples.

    The largest of six moments: the first layer's all-gather; the last layer's feed-forward network, in the forward
    pass or, if it is computed again, in the backward pass; the loss; a trained head's gradient; the backward pass of
    the final norm; or the optimizer step, which needs no activations but one more copy of the gradients (the flat
    all-reduce buffer; where nothing is reduced, that is too much).
    """
    if setup.lora is None:
        return memory_of_whole(setup, sample, samples)
    state = _state(setup)
    gathered, all_gather = _gathered(setup)
    saved = _saved_by_layers(setup, sample, samples)
    last = (0, _feed_forward_working(setup, sample, samples))
    if setup.activation_checkpointing != "none":
        again = saved // setup.shape.layers  # what a layer keeps if all is kept
        saved = _saved_by_checkpoints(setup, sample, samples)
        kept = _kept_by_layer(setup, sample, samples)
        last = (again - kept, _feed_forward_again(setup, sample, samples))
    moments = []
    for kept, working in (
        last,
        (_saved_by_norm(setup, sample, samples), _loss_working(setup, sample, samples)),
        (_saved_by_norm(setup, sample, samples), _head_working(setup, sample, samples)),
        (_saved_by_norm(setup, sample, samples), _norm_working(setup, sample, samples)),
    ):
        moments.append(Memory(**state, gathered=gathered, activations=saved + kept, working=working + all_gather))
    # With shards, before the first layer: what was gathered of the root unit and of the layer, and both their buffers.
    moments.append(Memory(**{**state, "gradients": 0}, gathered=gathered, activations=0, working=gathered))
    gradients = _FP32 * setup.trained_parameters // setup.shard
    moments.append(Memory(**{**state, "gradients": gradients}, gathered=0, activations=0, working=gradients))
    return max(moments, key=lambda moment: moment.total)


def _state(setup: Setup) -> dict[str, int]:
    """Weights, moments, and the gradients that are there when a micro-batch begins.

    Base: `s` x parameters. Adapter: float32, and twice that for AdamW; all three divided by the shards. Gradients, 4
    bytes a parameter, are there only from the second micro-batch of a step on, and whole: FSDP2 scatters them after the
    last one.
    """
    shape, (layer, root) = setup.held, _layer_and_root(setup.held)
    adapter = _FP32 * setup.trained_parameters
    return {
        "base": setup.base_itemsize * (shape.layers * layer + root) // setup.shard,
        "adapter": adapter // setup.shard,
        "optimizer": 2 * adapter // setup.shard,
        "gradients": adapter if setup.accumulation > 1 else 0,
    }


def _gathered(setup: Setup) -> tuple[int, int]:
    """Weights that FSDP2 holds whole, and its all-gather buffer; nothing without shards.

    Whole: the root unit (embeddings, heads, final norm; kept from forward to backward) and one layer with its adapter.
    The buffer is another copy of the layer. A GPU that fetches the next layer ahead holds one more for a while.
    """
    if setup.shard == 1:
        return 0, 0
    layer, root = (setup.base_itemsize * count for count in _layer_and_root(setup.held))
    first = f"{_LAYERS}0."
    layer += _FP32 * sum(count for name, count in setup.trained.items() if name.startswith(first))
    root += _FP32 * sum(count for name, count in setup.trained.items() if not name.startswith(_LAYERS))
    return root + layer, layer


@cache
def _layer_and_root(shape: HiggsAudioV2Shape) -> tuple[int, int]:
    """Parameters of a layer, and of what is no layer: embeddings, heads, final norm."""
    sizes = {name: prod(size) for name, size in shape.parameters().items()}
    root = sum(size for name, size in sizes.items() if not name.startswith(_LAYERS))
    return (sum(sizes.values()) - root) // shape.layers, root


def _saved_by_layers(setup: Setup, sample: Sample, samples: int) -> int:
    """Bytes that the layers keep for the backward pass.

    A layer, per token: two norms' inputs in float32, `2 x (4h + 4)`; the feed-forward network's gate, up and SiLU,
    `3sf`; query, output, and key and value repeated for every query head, `4sa` (a single key-value head is not
    copied); log-sum-exp, 4 bytes a head; four masks of one byte. A process of a tensor group has its own `f`, `a` and
    heads, and with sequence parallelism its stretch of the norms' inputs. Per row: the block mask as numbers, `s L^2`,
    made anew by every layer.

    Adapters: `saved_by_adapters`, and in bf16 autocast's copies of trained weights, `2` bytes a parameter. DoRA
    with dropout multiplies the base's weight a second time, in bf16 with a copy of it.

    Source: the trace of `higgsc/train/prediction/trace.py`, and the code that it ran.
    """
    s, shape = setup.base_itemsize, setup.held
    tokens = samples * sample.tokens
    per_token = 2 * (_FP32 * shape.hidden_size + _FP32) // setup.stretches + 3 * s * shape.intermediate_size
    keys = setup.attention_width if shape.key_value_heads > 1 else shape.head_dim
    per_token += 2 * s * (setup.attention_width + keys) + _FP32 * shape.attention_heads + 4
    saved = shape.layers * (tokens * per_token + s * tokens**2)

    through = _through(sample)
    saved += sum(samples * through[route] * count for route, count in saved_by_adapters(setup).items())
    saved += 2 * setup.trained_parameters if setup.precision == "bf16" else 0
    if setup.adapter.dora and setup.adapter.dropout > 0 and setup.precision == "bf16":
        saved += 2 * sum(prod(size) for name, size in setup.modules.items() if name.startswith(_LAYERS))
    return saved


@cache
def saved_by_adapters(setup: Setup) -> Mapping[Route, int]:
    """Bytes that the layers' adapters keep for the backward pass, for each token of a route.

    A rank's worth of activations, `s r`, and the input, `s x in` (bf16: a copy of its own, because PEFT casts to
    float32 and autocast back; fp32: shared by q, k, v and by gate, up, and o's is the attention's output). Dropout
    above 0 keeps a one-byte mask and, in fp32, an output of its own. DoRA scales the outputs of base and adapter
    apart and keeps both, `2s x out`. The heads see labelled positions only.
    """
    s, saved = setup.base_itemsize, dict.fromkeys(_ROUTES, 0)
    own_input = setup.precision == "bf16" or setup.adapter.dropout > 0
    kept: set[str] = set()
    for name, (out, inputs) in setup.modules.items():
        if not name.startswith(_LAYERS):
            continue
        parent, _, module = name.rpartition(".")
        source = parent if module in _SHARED_INPUT else name
        route = _route(name)
        saved[route] += s * setup.adapter.rank_of(name)
        if own_input or (module != "o_proj" and source not in kept):
            saved[route] += s * inputs
        if setup.adapter.dropout > 0:
            saved[route] += inputs
        if setup.adapter.dora:
            saved[route] += 2 * s * out
        kept.add(source)
    return saved


def _saved_by_checkpoints(setup: Setup, sample: Sample, samples: int) -> int:
    """Bytes that layers keep with activation checkpointing: their input, `sh` a token, `_kept_by_layer`, once the bools
    of the block mask, and in bf16 autocast's copies of trained weights."""
    tokens = samples * sample.tokens
    inputs = setup.base_itemsize * setup.shape.hidden_size * tokens // setup.stretches
    copies = 2 * setup.trained_parameters if setup.precision == "bf16" else 0
    return setup.shape.layers * (inputs + _kept_by_layer(setup, sample, samples)) + tokens**2 + copies


def _kept_by_layer(setup: Setup, sample: Sample, samples: int) -> int:
    """Bytes that a layer keeps beside its input if it is checkpointed selectively.

    The products with the base's weights, `s x out` a token (twice with DoRA and dropout, which PEFT multiplies apart),
    and the attention: its output, and log-sum-exp, 4 bytes a head.
    """
    if setup.activation_checkpointing != "selective":
        return 0
    s, shape = setup.base_itemsize, setup.held
    through = _through(sample)
    kept = (s * setup.attention_width + _FP32 * shape.attention_heads) * samples * sample.tokens
    twice = setup.adapter.dora and setup.adapter.dropout > 0
    for name, (out, _) in shape.linear_modules().items():
        if name.startswith(f"{_LAYERS}0."):
            kept += (2 if twice and name in setup.modules else 1) * s * out * samples * through[_route(name)]
    return kept


def _saved_by_norm(setup: Setup, sample: Sample, samples: int) -> int:
    """The final norm's input in float32, `4h + 4` a token."""
    return samples * sample.tokens * (_FP32 * setup.shape.hidden_size + _FP32) // setup.stretches


def _feed_forward_working(setup: Setup, sample: Sample, samples: int) -> int:
    """The last layer's audio network, after its down projection: `sf + 5sh` an audio row (and `4f` for the float32
    copy that PEFT hands to an adapter there), `3sh` a token for the residual stream, and the block mask's bools.
    In a tensor group the block's input and output are whole, and a stretch of the output is summed: `sh` more each."""
    s, shape, tokens = setup.base_itemsize, setup.held, samples * sample.tokens
    dora = _dora_working(setup, "audio_mlp.down_proj")
    per_row = s * shape.intermediate_size
    if any(name.endswith(".audio_mlp.down_proj") for name in setup.modules):
        per_row += 5 * s * shape.hidden_size
        if setup.precision == "bf16":
            per_row += _FP32 * shape.intermediate_size
        if setup.adapter.dropout > 0:
            per_row += _FP32 * shape.intermediate_size
    else:
        per_row += 2 * s * shape.hidden_size
    streams = 3 * s * shape.hidden_size * tokens
    if setup.tensor > 1:
        streams += s * shape.hidden_size * (tokens + tokens // setup.stretches)
    return samples * sample.audio_rows * per_row + streams + tokens**2 + dora


def _feed_forward_again(setup: Setup, sample: Sample, samples: int) -> int:
    """The last layer's audio network, computed a second time and then in its backward pass.

    Whichever is more: what it takes in the forward pass, without the block mask's bools; or, after its down projection,
    the gradients of its product and of both factors, `3sf` an audio row, and of the residual stream, `sh` a token.
    """
    s, shape = setup.base_itemsize, setup.held
    per_row = 3 * s * shape.intermediate_size
    backward = samples * (sample.audio_rows * per_row + sample.tokens * s * shape.hidden_size)
    return max(backward, _feed_forward_working(setup, sample, samples) - (samples * sample.tokens) ** 2)


def _dora_working(setup: Setup, end: str) -> int:
    """DoRA's norm of an adapted module's rows: `BA`, `scale x BA` and the sum in float32, in bf16 a float32 copy of the
    weight as well, and the identity matrix that PEFT multiplies to get `BA`, `s x in^2`."""
    s = setup.base_itemsize
    copies = (4 if setup.precision == "bf16" else 3) * _FP32
    sizes = (size for name, size in setup.modules.items() if name.endswith(end) and setup.adapter.dora)
    return max((copies * out * inputs + s * inputs**2 for out, inputs in sizes), default=0)


def _head_working(setup: Setup, sample: Sample, samples: int) -> int:
    """The text head, whose gradients are the first: audio log-probabilities in float32 are there as well.

    Trained whole, its weight's gradient, 4 bytes a parameter (in bf16 two numbers more, whose place autocast's copy of
    the weight has just left); with DoRA, what the norm of its rows takes.
    """
    logits = _loss_working(setup, sample, samples) // 3
    full = prod(setup.shape.linear_modules()["text_lm_head"]) if "text_lm_head" in setup.adapter.full else 0
    return logits + max(_FP32 * full, _dora_working(setup, "_lm_head"))


def _loss_working(setup: Setup, sample: Sample, samples: int) -> int:
    """Audio logits at labelled positions in the loss's backward pass: log-probabilities and two gradients in float32,
    12 bytes a logit, `codebooks x codebook size` logits a row. The text head's three rows a sample do not count."""
    return 3 * _FP32 * setup.shape.codebooks * setup.shape.codebook_size * samples * sample.labelled_rows


def _norm_working(setup: Setup, sample: Sample, samples: int) -> int:
    """The final norm's backward pass: five float32 tensors of the residual stream's size, `20h` a token.

    By then the heads have their gradients, which are no others' place if they are the step's first; in bf16, autocast's
    copies of their weights are gone.
    """
    heads = sum(count for name, count in setup.trained.items() if not name.startswith(_LAYERS))
    new = (_FP32 if setup.accumulation == 1 else 0) - (2 if setup.precision == "bf16" else 0)
    return 5 * _FP32 * setup.shape.hidden_size * samples * sample.tokens // setup.stretches + new * heads
