"""What a training costs in memory and arithmetic: closed forms over a model's shape.

The formulas follow the trainer as it is (transformers' layers run eagerly, PEFT adapters in float32, autocast to
bfloat16, packed rows, attention by `scaled_dot_product_attention` with a dense block mask). They were read off a trace
of that trainer on fake tensors, and `higgsc plan --verify` traces it again and compares. Bytes are bytes, GB are 10^9.

Symbols: `h` hidden size, `a` attention width (heads x head size), `f` inner width of a feed-forward network, `r` LoRA
rank, `s` bytes of a number of the base (2 in bf16, 4 in fp32), `L` tokens of a packed row, `n` samples in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from math import prod
from typing import Literal

from higgsc.catalog.codec import DELAY_ROWS, EXTRA_ROWS_PER_CLIP, FRAMES_PER_SECOND
from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape

TEXT_TOKENS_PER_SECOND = 8.0
"""Assumption: text tokens for one second of speech, chat template included. With the codec's 25 frames that makes 33
tokens a second, the middle of the 30 to 40 that transcripts in several languages come to; the prepare step counts the
real ones."""

_FP32 = 4
_LAYERS = "model.layers."
_SHARED_INPUT = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}

Route = Literal["all", "text", "audio"]
"""Tokens that pass through a module: those of the row, or those of one of the two feed-forward networks."""
_ROUTES: tuple[Route, ...] = ("all", "text", "audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The length of a voice-cloning sample."""

    reference: int
    """Frames of the reference."""
    target: int
    """Frames of the target."""
    text: int
    """Text tokens around them."""

    @classmethod
    def of_seconds(cls, reference: float, target: float) -> Sample:
        """From seconds of speech, with the codec's frame rate and `TEXT_TOKENS_PER_SECOND`."""
        frames = [max(1, round(seconds * FRAMES_PER_SECOND)) for seconds in (reference, target)]
        # At least the tokens that every sample has: one in front, two between the clips, two behind.
        return cls(
            reference=frames[0],
            target=frames[1],
            text=max(5, round((reference + target) * TEXT_TOKENS_PER_SECOND)),
        )

    @property
    def audio_rows(self) -> int:
        """Rows of both clips: frames + 9 each."""
        return self.reference + self.target + 2 * EXTRA_ROWS_PER_CLIP

    @property
    def tokens(self) -> int:
        """Positions of the language model, text and audio."""
        return self.audio_rows + self.text

    @property
    def labelled_rows(self) -> int:
        """Positions with audio labels: the target's frames, one end-of-stream row, seven rows of delay."""
        return self.target + 1 + DELAY_ROWS


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What determines the costs, beside the length of the samples."""

    shape: HiggsAudioV2Shape
    precision: Literal["bf16", "fp32"]
    targets: tuple[str, ...]
    """Suffixes of the module paths that carry an adapter."""
    rank: int
    dropout: float
    replicate: int
    shard: int
    accumulation: int

    @cached_property
    def modules(self) -> Mapping[str, tuple[int, int]]:
        """Modules with an adapter: path to `(out, in)`."""
        ends = tuple(f".{target}" for target in self.targets)
        return {name: sizes for name, sizes in self.shape.linear_modules().items() if f".{name}".endswith(ends)}

    @property
    def base_itemsize(self) -> int:
        """Bytes of a number of the base."""
        return 2 if self.precision == "bf16" else _FP32

    @property
    def attention_width(self) -> int:
        return self.shape.attention_heads * self.shape.head_dim

    @cached_property
    def adapter_parameters(self) -> int:
        """`r x (in + out)`, summed over the modules."""
        return self.rank * sum(map(sum, self.modules.values()))

    @cached_property
    def saved_by_adapters(self) -> Mapping[Route, int]:
        """Bytes that the layers' adapters keep for the backward pass, for each token of a route.

        A rank's worth of activations, `s r`, and the input, `s x in` (bf16: a copy of its own, because PEFT casts to
        float32 and autocast back; fp32: shared by q, k, v and by gate, up, and o's is the attention's output). Dropout
        above 0 keeps a one-byte mask and, in fp32, an output of its own. The heads see labelled positions only.
        """
        s, saved = self.base_itemsize, dict.fromkeys(_ROUTES, 0)
        own_input = self.precision == "bf16" or self.dropout > 0
        kept: set[str] = set()
        for name, (_, inputs) in self.modules.items():
            if not name.startswith(_LAYERS):
                continue
            parent, _, module = name.rpartition(".")
            source = parent if module in _SHARED_INPUT else name
            route: Route = "audio" if ".audio_mlp." in name else "text" if ".mlp." in name else "all"
            saved[route] += s * self.rank
            if own_input or (module != "o_proj" and source not in kept):
                saved[route] += s * inputs
            if self.dropout > 0:
                saved[route] += inputs
            kept.add(source)
        return saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU at the moment when most are in use, by what they are for."""

    base: int
    """Frozen weights."""
    adapter: int
    """Trainable weights."""
    optimizer: int
    """AdamW's two moments."""
    gradients: int
    """Gradients that earlier micro-batches of the step left behind."""
    gathered: int
    """Weights that FSDP2 has put together for the moment."""
    activations: int
    """What the decoder's forward pass keeps for the backward pass."""
    working: int
    """Logits, and what comes and goes."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def memory(setup: Setup, sample: Sample, samples: int) -> Memory:
    """Peak memory of a process that trains on rows of `samples` equal samples.

    The largest of five moments: the first layer's all-gather; the last layer's feed-forward network in the forward
    pass; the loss; the backward pass of the final norm; or the optimizer step, which needs no activations but one more
    copy of the gradients (the flat all-reduce buffer; where nothing is reduced, that is too much).
    """
    state = _state(setup)
    gathered, all_gather = _gathered(setup)
    saved = _saved_by_layers(setup, sample, samples)
    moments = []
    for kept, working in (
        (0, _feed_forward_working(setup, sample, samples)),
        (_saved_by_norm(setup, sample, samples), _loss_working(setup, sample, samples)),
        (_saved_by_norm(setup, sample, samples), _norm_working(setup, sample, samples)),
    ):
        moments.append(Memory(**state, gathered=gathered, activations=saved + kept, working=working + all_gather))
    # With shards, before the first layer: what was gathered of the root unit and of the layer, and both their buffers.
    moments.append(Memory(**{**state, "gradients": 0}, gathered=gathered, activations=0, working=gathered))
    gradients = _FP32 * setup.adapter_parameters // setup.shard
    moments.append(Memory(**{**state, "gradients": gradients}, gathered=0, activations=0, working=gradients))
    return max(moments, key=lambda moment: moment.total)


def _state(setup: Setup) -> dict[str, int]:
    """Weights, moments, and the gradients that are there when a micro-batch begins.

    Base: `s` x parameters. Adapter: float32, and twice that for AdamW; all three divided by the shards. Gradients, 4
    bytes a parameter, are there only from the second micro-batch of a step on, and whole: FSDP2 scatters them after the
    last one.
    """
    shape, (layer, root) = setup.shape, _layer_and_root(setup.shape)
    adapter = _FP32 * setup.adapter_parameters
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
    layer, root = (setup.base_itemsize * count for count in _layer_and_root(setup.shape))
    first = f"{_LAYERS}0."
    layer += _FP32 * setup.rank * sum(sum(size) for name, size in setup.modules.items() if name.startswith(first))
    root += _FP32 * setup.rank * sum(sum(size) for name, size in setup.modules.items() if not name.startswith(_LAYERS))
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
    `3sf`; query, output, and key and value repeated for every query head, `4sa`; log-sum-exp, 4 bytes a head; four
    masks of one byte. Per row: the block mask as numbers, `s L^2`, made anew by every layer.

    Adapters: `Setup.saved_by_adapters`, and in bf16 autocast's copies of their weights, `2` bytes a parameter.

    Source: the trace of `higgsc/train/trace.py`, and the code that it ran.
    """
    s, shape = setup.base_itemsize, setup.shape
    tokens = samples * sample.tokens
    per_token = 2 * (_FP32 * shape.hidden_size + _FP32) + 3 * s * shape.intermediate_size
    per_token += 4 * s * setup.attention_width + _FP32 * shape.attention_heads + 4
    saved = shape.layers * (tokens * per_token + s * tokens**2)

    through: dict[Route, int] = {"all": sample.tokens, "text": sample.text, "audio": sample.audio_rows}
    saved += sum(samples * through[route] * count for route, count in setup.saved_by_adapters.items())
    return saved + (2 * setup.adapter_parameters if setup.precision == "bf16" else 0)


def _saved_by_norm(setup: Setup, sample: Sample, samples: int) -> int:
    """The final norm's input in float32, `4h + 4` a token."""
    return samples * sample.tokens * (_FP32 * setup.shape.hidden_size + _FP32)


def _feed_forward_working(setup: Setup, sample: Sample, samples: int) -> int:
    """The last layer's audio network, after its down projection: `sf + 5sh` an audio row (and `4f` for the float32
    copy that PEFT hands to an adapter there), `3sh` a token for the residual stream, and the block mask's bools."""
    s, shape, tokens = setup.base_itemsize, setup.shape, samples * sample.tokens
    per_row = s * shape.intermediate_size
    if any(name.endswith(".audio_mlp.down_proj") for name in setup.modules):
        per_row += 5 * s * shape.hidden_size
        if setup.precision == "bf16":
            per_row += _FP32 * shape.intermediate_size
        if setup.dropout > 0:
            per_row += _FP32 * shape.intermediate_size
    else:
        per_row += 2 * s * shape.hidden_size
    return samples * sample.audio_rows * per_row + 3 * s * shape.hidden_size * tokens + tokens**2


def _loss_working(setup: Setup, sample: Sample, samples: int) -> int:
    """Audio logits at labelled positions in the loss's backward pass: log-probabilities and two gradients in float32,
    12 bytes a logit, `codebooks x codebook size` logits a row. The text head's three rows a sample do not count."""
    return 3 * _FP32 * setup.shape.codebooks * setup.shape.codebook_size * samples * sample.labelled_rows


def _norm_working(setup: Setup, sample: Sample, samples: int) -> int:
    """The final norm's backward pass: five float32 tensors of the residual stream's size, `20h` a token."""
    return 5 * _FP32 * setup.shape.hidden_size * samples * sample.tokens


def flops_per_token(setup: Setup, *, keys: float, audio_share: float = 1.0) -> float:
    """Floating-point operations of forward and backward pass for one token.

    `4N + 6N_lora + 14 x keys x a x layers`. Frozen weights cost 2 a parameter forward and 2 for the gradient of their
    input; adapters 2 more for their own gradient. `N` counts the attention and one feed-forward network of every layer
    and the audio head, which the token passes through; the text head runs at three positions a sample and is left out.
    Attention multiplies queries with keys and weights with values, 2 x 2 x `a` a key forward and 2.5 times that
    backward (Dao et al., 2022).

    Args:
        keys: Keys that a token's attention multiplies: half the sequence for a causal kernel, the whole row for the
            dense block mask that the trainer uses.
        audio_share: Share of the tokens that take the audio network.
    """
    shape = setup.shape
    weights = {".audio_mlp.": audio_share, ".mlp.": 1.0 - audio_share, "text_lm_head": 0.0}

    def active(name: str) -> float:
        return next((weight for part, weight in weights.items() if part in name), 1.0)

    frozen = sum(active(name) * prod(size) for name, size in shape.linear_modules().items())
    adapter = sum(active(name) * setup.rank * sum(size) for name, size in setup.modules.items())
    attention = 14 * keys * setup.attention_width * shape.layers
    return 4 * frozen + 6 * adapter + attention
