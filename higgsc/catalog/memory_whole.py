"""What the training of a whole model costs in memory: closed forms over its shape.

Weights, gradients and AdamW's two moments are float32, 16 bytes a parameter, divided by the shards. FSDP2 (torch 2.13)
gathers what is computed with in the base's number format: the root unit (embeddings, heads, final norm) for the whole
micro-batch, a layer for its time. Read off a trace as the forms for an adapter are, with the same symbols.
"""

from __future__ import annotations

from math import prod

from higgsc.catalog.memory_parts import Memory
from higgsc.catalog.setup import Sample, Setup

_FP32 = 4


def memory_of_whole(setup: Setup, sample: Sample, samples: int) -> Memory:
    """Peak memory of a process that trains a whole model on rows of `samples` equal samples.

    The largest of six moments: the root unit is gathered; the loss; the audio network of the last layer but one, or of
    the first, goes backward; the root unit's gradients are scattered; the optimizer step.
    """
    s, shape, shard = setup.base_itemsize, setup.shape, setup.shard
    total = shape.parameter_count()
    root = total - shape.layers * _layer(setup)
    layer, tokens = _layer(setup), samples * sample.tokens
    heads = shape.codebooks * shape.codebook_size * shape.hidden_size + shape.vocab_size * shape.hidden_size
    buffer = s * layer if shard > 1 else 0  # of the all-gather: a group of one has none
    held = _FP32 * total // shard if setup.accumulation > 1 else 0

    whole = _saved_by_layer(setup, tokens)
    saved = whole if setup.activation_checkpointing == "none" else _saved_by_checkpoint(setup, tokens)
    logits = shape.codebooks * shape.codebook_size * samples * sample.labelled_rows
    # Of the layer at work all is there again but its audio network's product; and the gradients of that, of gate and up
    # and of a factor, of the residual stream and of the network's input and output.
    down = s * shape.intermediate_size * shape.hidden_size
    product = s * shape.intermediate_size * samples * sample.audio_rows
    network = 4 * product + 3 * s * shape.hidden_size * tokens

    def moment(*, gradients: int, gathered: int, activations: int, working: int) -> Memory:
        return Memory(
            base=0,
            adapter=_FP32 * total // shard,
            optimizer=2 * _FP32 * total // shard,
            gradients=held + gradients,
            gathered=gathered,
            activations=activations,
            working=working,
        )

    def behind(done: int) -> Memory:
        """`done` layers have gone backward, the gradients of the last of these are being scattered, in float32."""
        left = shape.layers - 1 - done
        return moment(
            gradients=s * heads + down + (done - 1) * _FP32 * layer // shard,
            gathered=s * (root + layer),
            activations=left * saved + whole - product,
            working=(s + _FP32) * layer + network,
        )

    scattered = shape.layers * _FP32 * layer // shard
    return max(
        moment(gradients=0, gathered=s * root, activations=0, working=s * (root + 2 * root // shard) if buffer else 0),
        moment(gradients=0, gathered=s * root, activations=shape.layers * saved, working=(2 * s + _FP32) * logits),
        behind(1),
        behind(shape.layers - 1),
        moment(
            gradients=scattered,
            gathered=0,
            activations=0,
            working=max((s + _FP32) * root, _FP32 * (root + root // shard)),
        ),
        moment(gradients=0 if held else _FP32 * total // shard, gathered=0, activations=0, working=0),
        key=lambda found: found.total,
    )


def _layer(setup: Setup) -> int:
    """Parameters of a layer."""
    return sum(prod(size) for name, size in setup.shape.parameters().items() if name.startswith("model.layers.0."))


def _saved_by_layer(setup: Setup, tokens: int) -> int:
    """Bytes that a layer keeps for the backward pass if it keeps all.

    Per token, where its weights are frozen (see `memory.py`): two norms' inputs and scales, `2 x (sh + 4)`, gate and
    up, `2sf`, query and output, `2sa`, key and value, and 4 bytes a head. For its own weights' gradients the inputs of
    the products, `sf` of down and `2sh` of the others; the output projection's is the attention's output.
    """
    s, shape = setup.base_itemsize, setup.shape
    keys = shape.key_value_heads * shape.head_dim
    per_token = 4 * s * shape.hidden_size + 2 * _FP32 + 3 * s * shape.intermediate_size
    per_token += 2 * s * (setup.attention_width + keys) + _FP32 * shape.attention_heads
    return tokens * per_token


def _saved_by_checkpoint(setup: Setup, tokens: int) -> int:
    """Bytes that a checkpointed layer keeps: its input, `sh` a token; if selectively, the products, too, `s x out` a
    token, and the attention's output, `sa`, and log-sum-exp, 4 bytes a head."""
    s, shape = setup.base_itemsize, setup.shape
    per_token = s * shape.hidden_size
    if setup.activation_checkpointing == "selective":
        keys = shape.key_value_heads * shape.head_dim
        per_token += 2 * s * (setup.attention_width + keys + shape.hidden_size + shape.intermediate_size)
        per_token += _FP32 * shape.attention_heads
    return tokens * per_token
