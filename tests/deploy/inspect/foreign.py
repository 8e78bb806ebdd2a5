"""Adapters as trainers on the original release save them: its module tree, wrapped by PEFT, pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import nn


class _Layer(nn.Module):
    def __init__(self, hidden: int, key_value: int, inner: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict(
            {
                name: nn.Linear(hidden, key_value if name in ("k_proj", "v_proj") else hidden, bias=False)
                for name in ("q_proj", "k_proj", "v_proj", "o_proj")
            }
        )
        for name in ("mlp", "audio_mlp"):
            self.add_module(
                name,
                nn.ModuleDict(
                    {
                        "gate_proj": nn.Linear(hidden, inner, bias=False),
                        "up_proj": nn.Linear(hidden, inner, bias=False),
                        "down_proj": nn.Linear(inner, hidden, bias=False),
                    }
                ),
            )


class Original(nn.Module):
    """The linear modules of the tiny model, as boson_multimodal's `HiggsAudioModel` names them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(128, 64, 256) for _ in range(4)])
        self.audio_decoder_proj = nn.ModuleDict(
            {"audio_lm_head": nn.Linear(128, 8208, bias=False), "text_lm_head": nn.Linear(128, 279, bias=False)}
        )

    def forward(self, x: Any) -> Any:
        return x


def original_model(base: Path) -> Original:
    """The tiny base's weights under the original release's names: written by hand, not with higgsc's table."""
    stored = load_file(base / "model.safetensors")
    model = Original()
    weights = {
        name: stored[
            name.removeprefix("audio_decoder_proj.") if name.startswith("audio_decoder_proj.") else f"model.{name}"
        ]
        for name in model.state_dict()
    }
    model.load_state_dict(weights)
    return model


def save_original(base: Path, folder: Path, *, pickled: bool = True, **options: Any) -> dict[str, torch.Tensor]:
    """Wrap the original model by PEFT and save the adapter.

    Returns:
        The weights that PEFT's own merge gives, by the names of the original release.
    """
    adapted = peft.get_peft_model(original_model(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder, safe_serialization=not pickled)
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return merged
