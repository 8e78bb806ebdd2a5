"""The module tree of Higgs Audio v2, computed from its shape.

The layout is that of transformers' `HiggsAudioV2ForConditionalGeneration` with its text head: a Llama-style
decoder in which every layer shares its attention between text and audio and has one feed-forward network for
each (`mlp`, `audio_mlp`). No projection has a bias; embeddings and heads are untied.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from higgsc.catalog.codec import CODEBOOK_SIZE, CODEBOOKS, SPECIAL_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class HiggsAudioV2Shape:
    """Sizes that determine every parameter of a Higgs Audio v2 language model."""

    vocab_size: int
    """Text tokens, special ones included: rows of the text embedding and of the text head."""

    hidden_size: int
    """Width of the residual stream, in features."""

    intermediate_size: int
    """Inner width of both feed-forward networks, in features."""

    layers: int
    """Decoder layers."""

    attention_heads: int
    """Query heads per layer."""

    key_value_heads: int
    """Key and value heads per layer; each serves `attention_heads / key_value_heads` query heads."""

    head_dim: int
    """Features per head."""

    codebooks: int
    """Codes per audio row."""

    codebook_size: int
    """Rows per codebook in the audio embedding and head: entries plus stream BOS and EOS."""

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Linear modules, in the model's order.

        Returns:
            Module path (as in `named_modules()`) to `(out_features, in_features)`: ten per layer, then the
            audio head and the text head.
        """
        modules: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            for name, shape in self._layer_linears():
                modules[f"model.layers.{layer}.{name}"] = shape
        modules["audio_lm_head"] = (self.codebooks * self.codebook_size, self.hidden_size)
        modules["text_lm_head"] = (self.vocab_size, self.hidden_size)
        return modules

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Parameters, in the order of transformers' `named_parameters()`.

        Returns:
            Parameter name to shape, the text head included.
        """
        linears = self._layer_linears()
        attention_and_text, audio = linears[:7], linears[7:]
        norm = (self.hidden_size,)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes.update((f"{prefix}{name}.weight", shape) for name, shape in attention_and_text)
            shapes[f"{prefix}input_layernorm.weight"] = norm
            shapes[f"{prefix}post_attention_layernorm.weight"] = norm
            shapes.update((f"{prefix}{name}.weight", shape) for name, shape in audio)
            shapes[f"{prefix}audio_input_layernorm.weight"] = norm
            shapes[f"{prefix}audio_post_attention_layernorm.weight"] = norm
        shapes["model.norm.weight"] = norm
        audio_rows = self.codebooks * self.codebook_size
        shapes["model.embed_audio_tokens.embed_audio_tokens.weight"] = (audio_rows, self.hidden_size)
        shapes["audio_lm_head.weight"] = (audio_rows, self.hidden_size)
        shapes["text_lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def divided(self, tensor: int) -> "HiggsAudioV2Shape":
        """What each of `tensor` processes holds that share the matrices of every layer: heads and inner widths.

        Embeddings, norms and output heads are whole on each.
        """
        assert self.indivisible(tensor) is None
        return replace(
            self,
            attention_heads=self.attention_heads // tensor,
            key_value_heads=self.key_value_heads // tensor,
            intermediate_size=self.intermediate_size // tensor,
        )

    def indivisible(self, tensor: int) -> str | None:
        """What `tensor` processes cannot share evenly, in words; None if there is nothing."""
        sizes = {
            "key-value heads": self.key_value_heads,
            "attention heads": self.attention_heads,
            "features of the feed-forward networks": self.intermediate_size,
        }
        return next((f"{size:,} {what}" for what, size in sizes.items() if size % tensor), None)

    def parameter_count(self) -> int:
        """Scalars in all parameters, the text head included."""
        return sum(map(prod, self.parameters().values()))

    def _layer_linears(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """Name and `(out, in)` of a layer's ten projections: attention, text network, audio network."""
        query, key_value = self.attention_heads * self.head_dim, self.key_value_heads * self.head_dim
        attention = (
            ("self_attn.q_proj", (query, self.hidden_size)),
            ("self_attn.k_proj", (key_value, self.hidden_size)),
            ("self_attn.v_proj", (key_value, self.hidden_size)),
            ("self_attn.o_proj", (self.hidden_size, query)),
        )
        return attention + tuple(self._feed_forward("mlp")) + tuple(self._feed_forward("audio_mlp"))

    def _feed_forward(self, name: str) -> Iterator[tuple[str, tuple[int, int]]]:
        yield f"{name}.gate_proj", (self.intermediate_size, self.hidden_size)
        yield f"{name}.up_proj", (self.intermediate_size, self.hidden_size)
        yield f"{name}.down_proj", (self.hidden_size, self.intermediate_size)


RELEASED = HiggsAudioV2Shape(
    vocab_size=128_256,
    hidden_size=3_072,
    intermediate_size=8_192,
    layers=28,
    attention_heads=24,
    key_value_heads=8,
    head_dim=128,
    codebooks=CODEBOOKS,
    codebook_size=CODEBOOK_SIZE,
)
"""`bosonai/higgs-audio-v2-generation-3B-base`: 5,771,283,456 parameters, 11,542,566,912 bytes in bfloat16,
which is the `total_size` of the published checkpoint's index."""

TINY = HiggsAudioV2Shape(
    vocab_size=256 + len(SPECIAL_TOKENS),
    hidden_size=128,
    intermediate_size=256,
    layers=4,
    attention_heads=4,
    key_value_heads=2,
    head_dim=32,
    codebooks=CODEBOOKS,
    codebook_size=CODEBOOK_SIZE,
)
"""The small sibling for tests and demonstrations on a CPU: same module tree, one text token per byte."""

BUILTIN_TINY = "builtin:tiny"
"""How a spec names the small sibling in `model.base` and `model.audio_tokenizer`."""

BASES: dict[str, HiggsAudioV2Shape] = {BUILTIN_TINY: TINY}
"""Bases whose shape differs from the released one."""


def shape_of(base: str) -> HiggsAudioV2Shape:
    """Shape of a base as a spec names it.

    Args:
        base: `builtin:tiny`, a hub id or a folder. The family has one released size, so every name that is
            not in `BASES` stands for it; the trainer checks the checkpoint's own configuration on loading.
    """
    return BASES.get(base, RELEASED)
