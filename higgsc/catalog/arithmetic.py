"""What a training costs in arithmetic: closed forms over a model's shape, checked against an independent count.

Symbols: `N` frozen weights, `N_lora` those of adapters, `a` attention width (heads x head size).
"""

from __future__ import annotations

from math import prod

from higgsc.catalog.setup import Setup


def flops_per_token(setup: Setup, *, keys: float, audio_share: float = 1.0, labelled: float | None = None) -> float:
    """Floating-point operations of one process for the forward and backward pass of one token.

    `4N + 6N_lora + 14 x keys x a x layers`, and what activation checkpointing computes again: selective the adapters,
    `2N_lora`; full the layers, `2N + 2N_lora + 4 x keys x a x layers`.

    Where the whole model is trained, `6N + 14 x keys x a x layers`; computed again is `2N + 4 x keys x a x layers` with
    full checkpointing, next to nothing with selective.

    Frozen weights cost 2 a parameter forward and 2 for the gradient of their input; adapters 2 more for their own
    gradient. `N` counts the attention and one feed-forward network of every layer and the audio head; the head, and
    what the last layer does after its attention, run at labelled tokens alone. The text head runs at three positions a
    sample and is left out, and so is a Whisper's projector. Attention multiplies queries with keys and weights with
    values, 2 x 2 x `a` a key forward and 2.5 times that backward (Dao et al., 2022).

    Args:
        keys: Keys that a token's attention multiplies: half the sample for a causal kernel.
        audio_share: Share of the tokens that take the audio network.
        labelled: Share of the tokens that predict an audio row, which are audio rows but for each target's first; all
            tokens if it is left out.
    """
    shape = setup.held
    last = f"layers.{shape.layers - 1}."
    weights = {".audio_mlp.": audio_share, ".mlp.": 1.0 - audio_share, "text_lm_head": 0.0}
    if labelled is not None:
        after = {f"{last}audio_mlp.": labelled, f"{last}mlp.": 0.0, f"{last}self_attn.o_proj": labelled}
        weights = {**after, "audio_lm_head": labelled, **weights}

    def active(name: str) -> float:
        return next((weight for part, weight in weights.items() if part in name), 1.0)

    linear = sum(active(name) * prod(size) for name, size in shape.linear_modules().items())
    adapter = 0.0 if setup.lora is None else sum(active(name) * count for name, count in setup.trained.items())
    head = active("audio_lm_head") * prod(shape.linear_modules()["audio_lm_head"])
    attention = 14 * keys * setup.attention_width * shape.layers
    again = {
        "none": 0.0,
        "selective": 2 * adapter,
        "full": 2 * (linear - head) + 2 * adapter + 4 / 14 * attention,
    }
    return (6 if setup.lora is None else 4) * linear + 6 * adapter + attention + again[setup.activation_checkpointing]
