"""The tiny language model: the released architecture at a size that trains on a CPU, with seeded weights."""

from __future__ import annotations

import torch
from transformers import (
    GenerationConfig,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from higgsc.catalog.codec import (
    AUDIO_DELAY,
    AUDIO_OUT,
    AUDIO_OUT_BOS,
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    END_OF_TURN,
    STREAM_BOS,
    STREAM_EOS,
)
from higgsc.catalog.higgs_audio_v2 import TINY, HiggsAudioV2Shape

_SEED = 20_250_723
_HEAD_STD = 0.4
_CARRIERS = 2
"""First features of the residual stream, which carry a large constant."""
_CARRIER_VALUE = 24.0


def build_language_model(tokenizer: PreTrainedTokenizerFast) -> HiggsAudioV2ForConditionalGeneration:
    """A language model with its text head, in float32, whose special ids are the tokenizer's.

    The weights are random, but shaped like a trained network's in one respect: a few features of the residual
    stream hold a large constant that the layers and heads do not read ("massive activations", Sun et al. 2024,
    https://arxiv.org/abs/2402.17762). With it, predictions start near uniform, and adapters on the layers alone
    can still make them certain, under the frozen heads and norm, by outweighing the constant; a plain random
    network of this width allows only one of the two.

    Call it where the global random state may change, as class construction draws from it; the weights
    themselves come from a generator of their own.
    """
    model = HiggsAudioV2ForConditionalGeneration(_config(tokenizer), use_text_head=True)
    model.generation_config = _generation_config(model.config)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = _std(name, parameter, TINY)
            if std is None:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=std, generator=generator)
        _set_carriers(model)
        model.model.embed_tokens.weight[model.config.pad_token_id] = 0.0
    return model


def _std(name: str, parameter: torch.Tensor, shape: HiggsAudioV2Shape) -> float | None:
    """Standard deviation of a parameter's entries; None for a norm, which starts at one."""
    if parameter.ndim == 1:
        return None
    if name.endswith("embed_tokens.weight"):
        return 1.0
    if name.endswith("embed_audio_tokens.weight"):
        # A row's embedding is the sum over its codebooks; this gives the sum unit variance.
        return float(shape.codebooks**-0.5)
    if name.endswith("lm_head.weight"):
        return _HEAD_STD
    std = float(parameter.shape[1] ** -0.5)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        # GPT-2's scaling: keeps the residual stream's variance independent of depth.
        std *= float((2 * shape.layers) ** -0.5)
    return std


def _set_carriers(model: HiggsAudioV2ForConditionalGeneration) -> None:
    """Let every embedding write the carriers, and nothing read them."""
    model.model.embed_tokens.weight[:, :_CARRIERS] = _CARRIER_VALUE
    model.model.embed_audio_tokens.embed_audio_tokens.weight[:, :_CARRIERS] = _CARRIER_VALUE / TINY.codebooks
    # The norms divide by the root mean square, carriers included; the layers' readers make up for it.
    width = TINY.hidden_size
    rms = ((_CARRIERS * _CARRIER_VALUE**2 + width - _CARRIERS) / width) ** 0.5
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            parameter[:, :_CARRIERS] = 0.0
            parameter.mul_(rms)
        elif name.endswith("lm_head.weight"):
            parameter[:, :_CARRIERS] = 0.0


def _config(tokenizer: PreTrainedTokenizerFast) -> HiggsAudioV2Config:
    def token(name: str) -> int:
        index = tokenizer.convert_tokens_to_ids(name)
        assert isinstance(index, int)
        return index

    assert len(tokenizer) == TINY.vocab_size, f"{len(tokenizer)} tokens, the catalog says {TINY.vocab_size}"
    # rope_parameters stays at the class default, which is the released Llama 3 scaling.
    return HiggsAudioV2Config(
        vocab_size=TINY.vocab_size,
        hidden_size=TINY.hidden_size,
        intermediate_size=TINY.intermediate_size,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.attention_heads,
        num_key_value_heads=TINY.key_value_heads,
        head_dim=TINY.head_dim,
        num_codebooks=TINY.codebooks,
        codebook_size=TINY.codebook_size,
        max_position_embeddings=2_048,
        bos_token_id=token(BEGIN_OF_TEXT),
        eos_token_id=token(END_OF_TURN),
        pad_token_id=token(END_OF_TEXT),
        audio_token_id=token(AUDIO_OUT),
        audio_bos_token_id=token(AUDIO_OUT_BOS),
        audio_delay_token_id=token(AUDIO_DELAY),
        audio_stream_bos_id=STREAM_BOS,
        audio_stream_eos_id=STREAM_EOS,
    )


def _generation_config(config: HiggsAudioV2Config) -> GenerationConfig:
    """The fields and values of the released `generation_config.json`, with this tokenizer's ids."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=50,
        top_p=0.95,
        ras_win_len=7,
        ras_win_max_num_repeat=2,
        use_cache=True,
        use_text_head=True,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
