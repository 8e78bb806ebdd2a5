"""The tiny codec: the released architecture with narrow layers, and weights that reconstruct simple speech.

The weights lie beside this file in float16. `specs/data/quickstart/train_codec.py` in the repository trained
them on synthetic Arabic speech and can do so again; a build only copies them, so it gives the same codec on
every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from transformers import DacConfig, HubertConfig

from higgsc.catalog.codec import CODEBOOK_ENTRIES, SAMPLE_RATE
from higgsc.data.codec import audio_tokenizer_class

WEIGHTS: Final = Path(__file__).with_name("codec.safetensors")
"""The trained weights, float16."""

_TRAINING_STATE: Final = ("codebook.inited", "codebook.cluster_size", "codebook.embed_avg")


def is_training_state(name: str) -> bool:
    """Whether a tensor of the codec serves its training alone; the weights file leaves those out."""
    return name.endswith(_TRAINING_STATE)


def codec_config() -> Any:
    """Configuration: sample rate, hop and codebooks as released; fewer, narrower layers."""
    config_class = audio_tokenizer_class().config_class
    return config_class(
        # 8 codebooks of 10 bits at 25 frames/s are 2 kbit/s; the class default goes up to 4.
        target_bandwidths=[0.5, 1, 1.5, 2],
        sample_rate=SAMPLE_RATE,
        codebook_size=CODEBOOK_ENTRIES,
        codebook_dim=8,
        # The released strides are 8, 5, 4, 2, 3; four levels leave more channels to each in the same bytes.
        acoustic_model_config=DacConfig(
            encoder_hidden_size=8,
            downsampling_ratios=[8, 8, 5, 3],
            decoder_hidden_size=128,
            upsampling_ratios=[8, 5, 8, 3],
            hidden_size=32,
            sampling_rate=SAMPLE_RATE,
        ),
        semantic_model_config=HubertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            mask_time_prob=0.0,
        ),
    )


def build_codec() -> Any:
    """The codec in float32 with the shipped weights.

    Call it where the global random state may change, as class construction draws from it.
    """
    model = audio_tokenizer_class()(codec_config()).eval()
    state = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
    for name, tensor in model.state_dict().items():
        if name.endswith("codebook.embed_avg"):
            state[name] = state[name.removesuffix("_avg")].clone()
        elif is_training_state(name):
            state[name] = torch.ones_like(tensor)
    model.load_state_dict(state)
    return model
