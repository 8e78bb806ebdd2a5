"""What the training of an adapter costs in memory: closed forms over a model's shape.

For the training of a whole model see `memory_whole.py`.

The formulas follow the trainer as it is (its own arithmetic in transformers' layers, run eagerly, adapters in float32,
autocast to bfloat16, packed rows, attention within each sample). They were read off a trace of that trainer on fake
tensors, and `higgsc plan --verify` traces it again and compares. Bytes are bytes, GB are 10^9.

Symbols: `h` hidden size, `a` attention width (heads x head size), `f` inner width of a feed-forward network, `r` LoRA
rank, `s` bytes of a number of the base (2 in bf16, 4 in fp32), `L` tokens of a packed row, `n` samples in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Literal

from higgsc.catalog.memory_parts import Memory
from higgsc.catalog.memory_whole import memory_of_whole
from higgsc.catalog.quantized import matrix_bytes
from higgsc.catalog.setup import Sample, Setup

_FP32 = 4
_IN_FLOAT32 = 2**22
"""Logits that the loss has in float32 at a time (`higgsc/train/objective/cross_entropy.py`)."""
_LAYERS = "model.layers."

Route = Literal["all", "text", "audio"]
"""Tokens that pass through a module: those of the row, or those of one of the two feed-forward networks."""


def _route(module: str) -> Route:
    return "audio" if ".audio_mlp." in module else "text" if ".mlp." in module else "all"


def _through(sample: Sample) -> dict[Route, int]:
    """Tokens of a sample that pass through the modules of a route."""
    return {"all": sample.tokens, "text": sample.text, "audio": sample.audio_rows}


def memory(setup: Setup, sample: Sample, samples: int) -> Memory:
    """Peak memory of a process that trains on rows of `samples` equal samples.

    The largest of six moments: the first layer's all-gather; the loss; a trained head's gradient; the feed-forward
    network of the last layer but one, in the forward or in the backward pass, where the last has gone, which keeps less
    than others; or the optimizer step, which needs no activations but one more copy of the gradients (the flat
    all-reduce buffer; where nothing is reduced, that is too much).
    """
    if setup.lora is None:
        return memory_of_whole(setup, sample, samples)
    state = _state(setup)
    gathered, all_gather = _gathered(setup)
    layer = _saved_by_attention(setup, sample, samples) + _saved_by_rest(setup, sample, samples)
    if setup.activation_checkpointing == "none":
        kept, saved, again = layer, _saved_by_layers(setup, sample, samples), 0
    else:
        kept, saved = (_saved_by_checkpoint(setup, sample, samples, after) for after in (sample, sample.labelled))
        saved += (setup.shape.layers - 1) * kept + _casts(setup) + _saved_by_projector(setup, sample, samples)
        again = layer - kept
    before = (setup.shape.layers - 1) * kept + _casts(setup) + _saved_by_projector(setup, sample, samples)
    at_loss = saved + _saved_by_norm(setup, sample, samples)
    moments = []
    for activations, working in (
        (before, _feed_forward_working(setup, sample, samples)),
        (before + again, _feed_forward_back(setup, sample, samples)),
    ):
        working += all_gather + _whole_matrix(setup)
        moments.append(Memory(**state, gathered=gathered, activations=activations, working=working))
    moments += [
        Memory(**state, gathered=gathered - all_gather, activations=at_loss, working=working)
        for working in (_loss_working(setup, sample, samples), _head_working(setup, sample, samples))
    ]
    # With shards, before the first layer: what was gathered of the root unit and of the layer, and both their buffers.
    moments.append(Memory(**{**state, "gradients": 0}, gathered=gathered, activations=0, working=gathered))
    gradients = _FP32 * setup.trained_parameters // setup.shard
    moments.append(Memory(**{**state, "gradients": gradients}, gathered=0, activations=0, working=gradients))
    return max(moments, key=lambda moment: moment.total)


def _state(setup: Setup) -> dict[str, int]:
    """Weights, moments, and the gradients that are there when a micro-batch begins.

    Base: `s` x parameters, of quantised matrices what `matrix_bytes` says. Adapter: float32, and twice that for AdamW;
    all three divided by the shards. Gradients, 4 bytes a parameter, are there only from the second micro-batch of a
    step on, and whole: FSDP2 scatters them after the last one.
    """
    layer, root = _layer_and_root(setup)
    adapter = _FP32 * setup.trained_parameters
    return {
        "base": (setup.shape.layers * layer + root) // setup.shard,
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
    layer, root = _layer_and_root(setup)
    first = f"{_LAYERS}0."
    layer += _FP32 * sum(count for name, count in setup.trained.items() if name.startswith(first))
    root += _FP32 * sum(count for name, count in setup.trained.items() if not name.startswith(_LAYERS))
    root += _FP32 * setup.projector
    return root + layer, layer


@cache
def _layer_and_root(setup: Setup) -> tuple[int, int]:
    """Bytes of a layer of the base, and of what is no layer: embeddings, heads, final norm."""
    first, sizes = f"{_LAYERS}0.", setup.held.parameters()
    root = sum(prod(size) for name, size in sizes.items() if not name.startswith(_LAYERS))
    layer = sum(_stored(setup, size) for name, size in sizes.items() if name.startswith(first))
    return layer, setup.base_itemsize * root


def _stored(setup: Setup, size: tuple[int, ...]) -> int:
    """Bytes of a parameter of a layer: quantised if it is a matrix, and so it is asked for."""
    if setup.quantize is not None and len(size) == 2:
        return matrix_bytes(size[0], size[1], setup.quantize)
    return setup.base_itemsize * prod(size)


def _saved_by_layers(setup: Setup, sample: Sample, samples: int) -> int:
    """Bytes that the layers keep for the backward pass.

    Source: the trace of `higgsc/train/prediction/trace.py`, and the code that it ran.
    """
    whole = _saved_by_attention(setup, sample, samples) + _saved_by_rest(setup, sample, samples)
    last = _saved_by_attention(setup, sample, samples) + _saved_by_rest(setup, sample.labelled, samples)
    if setup.sequence:
        last += samples * (sample.tokens - sample.labelled.tokens) * _norm_input(setup)
    elif any(name.endswith(".o_proj") for name in setup.modules):
        # What the output projection reads of the labelled positions.
        last += setup.base_itemsize * setup.attention_width * samples * sample.labelled.tokens
    return (setup.shape.layers - 1) * whole + last + _casts(setup) + _saved_by_projector(setup, sample, samples)


def _saved_by_projector(setup: Setup, sample: Sample, samples: int) -> int:
    """What a Whisper heard, normed: `s` a feature of each frame of the references."""
    return setup.base_itemsize * (setup.whisper or 0) * samples * sample.reference


@cache
def saved_by_adapters(setup: Setup) -> Mapping[tuple[str, Route], int]:
    """Bytes that a layer's adapters keep for the backward pass, for each token of a route, by block.

    A rank's worth of activations, `s r`, and the input, `s x in`: one for query, key and value, one for both
    networks' gate and up; the output projection's is the attention's output. With dropout or DoRA, each in bf16 has
    a copy of its own, because PEFT casts to float32 and autocast back; dropout keeps a one-byte mask and, in fp32,
    an output of its own; DoRA scales the outputs of base and adapter apart and keeps both, `2s x out`.
    """
    s = setup.base_itemsize
    saved: dict[tuple[str, Route], int] = {}
    own_input = (setup.precision == "bf16" and not setup.plain) or setup.adapter.dropout > 0
    kept: set[str] = set()
    for name, (out, inputs) in setup.modules.items():
        if not name.startswith(f"{_LAYERS}0."):
            continue
        *_, block, module = name.split(".")
        key = ("mlp" if block != "self_attn" else "o_proj" if module == "o_proj" else "qkv", _route(name))
        source = name if module == "down_proj" else key[0]
        saved.setdefault(key, 0)
        saved[key] += s * setup.adapter.rank_of(name)
        if own_input:
            saved[key] += s * inputs
        elif module != "o_proj" and source not in kept:
            shared: tuple[str, Route] = (key[0], "all") if module != "down_proj" else key
            saved[shared] = saved.get(shared, 0) + s * inputs
        if setup.adapter.dropout > 0:
            saved[key] += inputs
        if setup.adapter.dora:
            saved[key] += 2 * s * out
        kept.add(source)
    return saved


def _saved_by_attention(setup: Setup, sample: Sample, samples: int) -> int:
    """Of a layer, per token: the norm's input, `sh`, and its scale, 4 bytes; query and output, `2sa`, key and value as
    few as they are; log-sum-exp, 4 bytes a head; what the adapters of query, key and value keep.

    A process of a tensor group has its own heads, and with sequence parallelism its stretch of the norm's input.
    """
    s, shape, tokens = setup.base_itemsize, setup.held, samples * sample.tokens
    keys = shape.key_value_heads * shape.head_dim
    per_token = _norm_input(setup) + 2 * s * (setup.attention_width + keys) + _FP32 * shape.attention_heads
    return tokens * per_token + _saved_by_block(setup, "qkv", sample, samples)


def _saved_by_rest(setup: Setup, sample: Sample, samples: int) -> int:
    """Of a layer, per token: the second norm's input and scale, gate and up, `2sf`, and what the adapters of the output
    projection and of the feed-forward networks keep."""
    per_token = _norm_input(setup) + 2 * setup.base_itemsize * setup.held.intermediate_size
    blocks = sum(_saved_by_block(setup, block, sample, samples) for block in ("o_proj", "mlp"))
    return samples * sample.tokens * per_token + blocks


def _norm_input(setup: Setup) -> int:
    return (setup.base_itemsize * setup.shape.hidden_size + _FP32) // setup.stretches


def _saved_by_block(setup: Setup, block: str, sample: Sample, samples: int) -> int:
    through = _through(sample)
    saved = saved_by_adapters(setup).items()
    return samples * sum(through[route] * count for (of, route), count in saved if of == block)


def _casts(setup: Setup) -> int:
    """In bf16, autocast's copies of weights that PEFT's own modules train, 2 bytes a parameter. DoRA with dropout
    multiplies the base's weight a second time, with a copy of it."""
    if setup.precision != "bf16":
        return 0
    if setup.plain:
        return 2 * sum(prod(setup.shape.linear_modules()[head]) for head in setup.adapter.full)
    saved = 2 * sum(setup.trained.values())
    if setup.adapter.dora and setup.adapter.dropout > 0:
        saved += 2 * sum(prod(size) for name, size in setup.modules.items() if name.startswith(_LAYERS))
    return saved


def _saved_by_checkpoint(setup: Setup, sample: Sample, samples: int, after: Sample) -> int:
    """Bytes that a checkpointed layer keeps: its input, `sh` a token, and `_dear`."""
    inputs = setup.base_itemsize * setup.shape.hidden_size * samples * sample.tokens // setup.stretches
    return inputs + _dear(setup, sample, samples, after)


def _dear(setup: Setup, sample: Sample, samples: int, after: Sample) -> int:
    """Bytes that a layer keeps beside its input if it is checkpointed selectively.

    The products with the base's weights, `s x out` a token (twice with DoRA and dropout, which PEFT multiplies apart),
    and the attention: its output, and log-sum-exp, 4 bytes a head. `after` is what goes on after the attention.
    """
    if setup.activation_checkpointing != "selective":
        return 0
    s, shape = setup.base_itemsize, setup.held
    kept = (s * setup.attention_width + _FP32 * shape.attention_heads) * samples * sample.tokens
    twice = setup.adapter.dora and setup.adapter.dropout > 0
    for name, (out, _) in shape.linear_modules().items():
        if name.startswith(f"{_LAYERS}0."):
            of = sample if name.endswith(("q_proj", "k_proj", "v_proj")) else after
            kept += (2 if twice and name in setup.modules else 1) * s * out * samples * _through(of)[_route(name)]
    return kept


def _saved_by_norm(setup: Setup, sample: Sample, samples: int) -> int:
    """The final norm's input, `sh + 4` a token that comes so far: the labelled ones, or a divided sequence."""
    return samples * (sample if setup.sequence else sample.labelled).tokens * _norm_input(setup)


def _feed_forward_working(setup: Setup, sample: Sample, samples: int) -> int:
    """A layer's audio network, after its down projection: the residual stream, its norm and both networks' outputs,
    `sh` a token each."""
    return 4 * setup.base_itemsize * setup.shape.hidden_size * samples * sample.tokens


def _feed_forward_back(setup: Setup, sample: Sample, samples: int) -> int:
    """A layer's audio network in its backward pass: the gradients of product, gate and up and a factor, `4sf` an audio
    row; of the residual stream and of the network's input and output, `4sh` a token."""
    s, shape = setup.base_itemsize, setup.held
    per_row = 4 * s * shape.intermediate_size
    return samples * (sample.audio_rows * per_row + 4 * sample.tokens * s * shape.hidden_size)


def _whole_matrix(setup: Setup) -> int:
    """The largest matrix of a layer while int8 or nf4 is made whole: float32 beside what it is rounded to next, or
    beside the places that it is looked up at. fp8's turned copy, a byte a number, comes where less else is there."""
    if setup.quantize not in ("int8", "nf4"):
        return 0
    wide = _FP32 + (2 if setup.precision == "bf16" or setup.quantize == "nf4" else 0)
    return wide * setup.held.hidden_size * setup.held.intermediate_size


def _dora_working(setup: Setup, end: str) -> int:
    """DoRA's norm of an adapted module's rows: `BA`, `scale x BA` and the sum in float32, in bf16 a float32 copy of the
    weight as well, and the identity matrix that PEFT multiplies to get `BA`, `s x in^2`."""
    s = setup.base_itemsize
    copies = (4 if setup.precision == "bf16" else 3) * _FP32
    sizes = (size for name, size in setup.modules.items() if name.endswith(end) and setup.adapter.dora)
    return max((copies * out * inputs + s * inputs**2 for out, inputs in sizes), default=0)


def _head_working(setup: Setup, sample: Sample, samples: int) -> int:
    """The text head, whose gradients are the first: the gradient of the audio logits is there as well.

    Trained whole, its weight's gradient, 4 bytes a parameter (in bf16 two numbers more, whose place autocast's copy of
    the weight has just left); with DoRA, what the norm of its rows takes.
    """
    s, shape = setup.base_itemsize, setup.shape
    logits = s * shape.codebooks * shape.codebook_size * samples * sample.labelled_rows
    full = prod(setup.shape.linear_modules()["text_lm_head"]) if "text_lm_head" in setup.adapter.full else 0
    return logits + max(_FP32 * full, _dora_working(setup, "_lm_head"))


def _loss_working(setup: Setup, sample: Sample, samples: int) -> int:
    """Audio logits at labelled positions and their gradient, `2s` a logit, `codebooks x codebook size` logits a row;
    and a part of them in float32, in bf16 twice. The text head's three rows a sample do not count."""
    logits = setup.shape.codebooks * setup.shape.codebook_size * samples * sample.labelled_rows
    copies = 2 if setup.precision == "bf16" else 1
    return 2 * setup.base_itemsize * logits + copies * _FP32 * min(logits, _IN_FLOAT32)
