"""Names of Higgs Audio v2's modules and tensors in its original release, and what transformers calls them.

The original release (boson-ai/higgs-audio, `boson_multimodal`) and transformers' port hold the same tensors, neither
transposed nor joined, in the same order of rows; only the names differ. Trainers built on the original release save
adapters and checkpoints with its names. Source: `ORIGINAL_TO_CONVERTED_KEY_MAPPING` in transformers'
`convert_higgs_audio_v2_to_hf.py`.
"""

from __future__ import annotations

import re
from typing import Final

_NAMED_OTHERWISE: Final = {
    "embed_tokens": "model.embed_tokens",
    "norm": "model.norm",
    "audio_codebook_embeddings": "model.embed_audio_tokens.embed_audio_tokens",
    "audio_decoder_proj.audio_lm_head": "audio_lm_head",
    "audio_decoder_proj.text_lm_head": "text_lm_head",
}
_ORIGINALS: Final = {name: original for original, name in _NAMED_OTHERWISE.items()}
_PREFIX: Final = "model."
_IN_LAYER: Final = re.compile(
    r"layers\.(0|[1-9][0-9]*)\."
    r"(self_attn\.[qkvo]_proj|(audio_)?mlp\.(gate|up|down)_proj|(audio_)?(input|post_attention)_layernorm)"
)


def to_transformers(name: str) -> str | None:
    """The name in transformers of a module of the original release, or of its `.weight`.

    Returns:
        None if the original release has no such module, or has no counterpart for it in transformers:
        `audio_codebook_weights` and `rotary_emb` are computed there, and a table that was split for training
        (`embed_tokens.embedding_frozen`) is two tensors of one.
    """
    module, end = _split(name)
    if _IN_LAYER.fullmatch(module):
        return f"{_PREFIX}{module}{end}"
    found = _NAMED_OTHERWISE.get(module)
    return None if found is None else f"{found}{end}"


def to_original(name: str) -> str | None:
    """The name in the original release of a module of transformers' model, or of its `.weight`; None if it has none."""
    module, end = _split(name)
    if module.startswith(_PREFIX) and _IN_LAYER.fullmatch(module.removeprefix(_PREFIX)):
        return f"{module.removeprefix(_PREFIX)}{end}"
    found = _ORIGINALS.get(module)
    return None if found is None else f"{found}{end}"


def _split(name: str) -> tuple[str, str]:
    module = name.removesuffix(".weight")
    return module, name[len(module) :]
