"""Names of the original release and of transformers: each tensor of the released model has one in both."""

import pytest

from higgsc.catalog.higgs_audio_v2 import RELEASED
from higgsc.catalog.original_names import to_original, to_transformers


@pytest.mark.parametrize(
    ("original", "transformers"),
    [
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("audio_codebook_embeddings.weight", "model.embed_audio_tokens.embed_audio_tokens.weight"),
        ("layers.27.self_attn.q_proj.weight", "model.layers.27.self_attn.q_proj.weight"),
        ("layers.3.mlp.down_proj", "model.layers.3.mlp.down_proj"),
        ("layers.0.audio_mlp.gate_proj", "model.layers.0.audio_mlp.gate_proj"),
        ("layers.10.audio_post_attention_layernorm.weight", "model.layers.10.audio_post_attention_layernorm.weight"),
        ("norm.weight", "model.norm.weight"),
        ("audio_decoder_proj.audio_lm_head.weight", "audio_lm_head.weight"),
        ("audio_decoder_proj.text_lm_head", "text_lm_head"),
    ],
)
def test_the_published_pairs(original: str, transformers: str) -> None:
    assert to_transformers(original) == transformers
    assert to_original(transformers) == original


@pytest.mark.parametrize("names", [list(RELEASED.parameters()), list(RELEASED.linear_modules())])
def test_every_tensor_and_module_has_one_name_in_both(names: list[str]) -> None:
    originals = [to_original(name) for name in names]
    assert None not in originals
    assert len(set(originals)) == len(names)
    assert [to_transformers(name) for name in originals if name is not None] == names


@pytest.mark.parametrize("names", [list(RELEASED.parameters()), list(RELEASED.linear_modules())])
def test_a_name_is_never_taken_for_the_other_side_s(names: list[str]) -> None:
    assert [name for name in names if to_transformers(name) is not None] == []
    assert [name for name in map(str, map(to_original, names)) if to_original(name) is not None] == []


@pytest.mark.parametrize(
    "name",
    [
        "audio_codebook_weights",
        "rotary_emb.inv_freq",
        "embed_tokens.embedding_frozen.weight",
        "layers.0.self_attn.rotary_emb.inv_freq",
        "layers.00.mlp.up_proj",
        "layers.x.mlp.up_proj",
        "layers.0.mlp.up_proj.bias",
        "layers.0.audio_attn.q_proj",
        "audio_tower.layers.0.self_attn.q_proj",
        "audio_lm_head",
        ".weight",
        "",
    ],
)
def test_what_the_first_release_does_not_have_is_none(name: str) -> None:
    assert to_transformers(name) is None
