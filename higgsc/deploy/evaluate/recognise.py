"""What a recogniser understands: transcripts by a Whisper of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoProcessor, WhisperForConditionalGeneration

from higgsc.contract.evaluation import Judge
from higgsc.contract.outcome import StepError
from higgsc.data.whisper import RATE, resampled
from higgsc.deploy.evaluate.judges import cannot_load, judge_config

_SHORTEST = RATE // 10
"""Below a tenth of a second there is nothing to understand."""


class Recogniser:
    """Whisper, one recording at a time, greedily: the same transcript each time."""

    def __init__(self, model: Any, processor: Any, judge: Judge, *, language: str | None) -> None:
        self._model, self._processor, self.judge, self._language = model, processor, judge, language

    @classmethod
    def load(cls, name: str, *, root: Path, device: torch.device, language: str | None) -> Recogniser:
        """Load a recogniser in float32.

        Args:
            name: A folder below the project root or as named, or a hub id.
            root: The project root.
            device: Where it runs.
            language: Of all recordings, such as `ar`; None lets it find out for each.

        Raises:
            StepError: It is not there or not complete (66), is no Whisper, or does not know the language (65).
        """
        place, config = judge_config(name, "recogniser", "whisper", root=root)
        try:
            processor = AutoProcessor.from_pretrained(place)
            model, info = WhisperForConditionalGeneration.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, TypeError) as error:
            raise cannot_load(name, "recogniser", error) from error
        if info["missing_keys"]:
            raise cannot_load(name, "recogniser", ValueError(f"{len(info['missing_keys'])} weights are missing"))
        known = getattr(model.generation_config, "lang_to_id", None) or {}
        if language is not None and f"<|{language}|>" not in known:
            names = ", ".join(sorted(code.strip("<|>") for code in known)[:8])
            raise StepError(
                f"`evaluate.recogniser: {name}` does not know the language `{language}`",
                help=f"it knows {names} and more" if known else "it knows one language only: leave `language` out",
            )
        commit = getattr(config, "_commit_hash", None)
        return cls(model.to(device).eval(), processor, Judge(name=name, commit=commit), language=language)

    @torch.no_grad()
    def transcribe(self, samples: npt.NDArray[np.float32]) -> str:
        """What is understood of a recording, 24 kHz mono `[N]`; empty for an empty one.

        What is longer than the 30 seconds that a Whisper hears at a time is heard in windows.
        """
        wave = resampled(samples) if len(samples) else samples
        if len(wave) < _SHORTEST:
            return ""
        extractor = self._processor.feature_extractor
        long = len(wave) > extractor.n_samples
        padding: dict[str, Any] = {"padding": "longest", "truncation": False} if long else {}
        features = extractor(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **padding).to(
            self._model.device
        )
        asked: dict[str, Any] = {} if self._language is None else {"language": self._language, "task": "transcribe"}
        ids = self._model.generate(**features, **asked, return_timestamps=long, do_sample=False, num_beams=1)
        return str(self._processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()
