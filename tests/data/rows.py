"""Rows of data files."""

from __future__ import annotations

from typing import Any

from higgsc.data.layout import DEFAULT_SYSTEM

REQUEST = "Please generate speech for given text in reference audio's voice: "


def sample(name: str = "one", reference: str = "audio/a.wav", target: str = "audio/b.wav") -> dict[str, Any]:
    """A sample in the layout of three turns, as the community's files have it."""
    return {
        "messages": [
            {"role": "system", "content": DEFAULT_SYSTEM},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "نص مرجعي"},
                    {"type": "audio", "audio_url": reference, "raw_audio": "", "duration": None, "offset": None},
                    {"type": "text", "text": REQUEST + "نص الهدف"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "نص الهدف"}, {"type": "audio", "audio_url": target}],
            },
        ],
        "start_index": 0,
        "speaker": "speaker_001",
        "misc": {"sample_id": name},
    }
