"""The configuration of a checkpoint for the code of the original release (`boson_multimodal`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import StepError

_LLAMA = (
    "attention_bias", "attention_dropout", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "vocab_size",
)  # fmt: skip
"""What both call the same; there it lies in `text_config`."""


def original_config(config: Mapping[str, Any], tokenizer: Path) -> dict[str, Any]:
    """From transformers' configuration.

    What is not here are that code's defaults. It was compared with the released file, field by field, and never run.

    Args:
        config: Content of `config.json`.
        tokenizer: The checkpoint's `tokenizer.json`, which has the ids of tokens that transformers does not name.

    Raises:
        StepError: The tokenizer lacks one of them, or cannot be read (65).
    """
    ids = _special_ids(tokenizer)
    rope = dict(config["rope_parameters"])
    text = {key: config[key] for key in _LLAMA}
    text |= {"model_type": "llama", "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "use_cache": True}
    return {
        "architectures": ["HiggsAudioModel"],
        "model_type": "higgs_audio",
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(config["num_hidden_layers"])),
        "audio_ffn_hidden_size": config["hidden_size"],
        "audio_ffn_intermediate_size": config["intermediate_size"],
        "audio_decoder_proj_num_layers": 0,
        "audio_num_codebooks": config["num_codebooks"],
        "audio_codebook_size": config["audio_stream_bos_id"],
        "audio_stream_bos_id": config["audio_stream_bos_id"],
        "audio_stream_eos_id": config["audio_stream_eos_id"],
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_out_bos_token": "<|audio_out_bos|>",
        "audio_in_token": "<|AUDIO|>",
        "audio_out_token": "<|AUDIO_OUT|>",
        "audio_eos_token_id": ids["<|audio_eos|>"],
        "audio_out_bos_token_id": config["audio_bos_token_id"],
        "audio_in_token_idx": ids["<|AUDIO|>"],
        "audio_out_token_idx": config["audio_token_id"],
        "pad_token_id": config["pad_token_id"],
        "encode_audio_in_tokens": True,
        "encode_whisper_embed": False,
        "skip_audio_tower": True,
        "use_audio_out_self_attention": False,
        "use_delay_pattern": True,
        "use_rq_transformer": False,
        "text_config": text | {"torch_dtype": config["dtype"]},
        "torch_dtype": config["dtype"],
    }


def write_original_config(folder: Path) -> None:
    """Put it in the place of transformers' configuration in a model's folder.

    Raises:
        StepError: See `original_config`.
    """
    path = folder / "config.json"
    config = original_config(json.loads(path.read_text("utf-8")), folder / "tokenizer.json")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _special_ids(tokenizer: Path) -> dict[str, int]:
    try:
        added = json.loads(tokenizer.read_text("utf-8"))["added_tokens"]
        ids = {token["content"]: int(token["id"]) for token in added}
        return {name: ids[name] for name in ("<|audio_eos|>", "<|AUDIO|>")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(
            f"this tokenizer does not give the ids of Higgs Audio's tokens: {error}", path=tokenizer
        ) from error
