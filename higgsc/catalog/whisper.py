"""How wide the released Whispers are: features of the encoder's output, `d_model` of their config.json."""

from __future__ import annotations

WIDTHS = {
    "openai/whisper-tiny": 384,
    "openai/whisper-base": 512,
    "openai/whisper-small": 768,
    "openai/whisper-medium": 1024,
    "openai/whisper-large": 1280,
    "openai/whisper-large-v2": 1280,
    "openai/whisper-large-v3": 1280,
    "openai/whisper-large-v3-turbo": 1280,
}
EXAMPLE = "openai/whisper-large-v3"
