"""Whether it is the same voice: cosine of the x-vectors of a WavLM trained to verify speakers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoFeatureExtractor, WavLMForXVector

from higgsc.catalog.codec import SAMPLE_RATE
from higgsc.contract.evaluation import Judge
from higgsc.data.whisper import RATE, resampled
from higgsc.deploy.evaluate.judges import cannot_load, judge_config

SHORTEST_SECONDS = 0.5
"""Of a shorter recording nothing is said: the network's windows do not fit, and no voice can be told by it."""
_ONLY_IN_TRAINING = "masked_spec_embed"
"""What stands for masked sound; released checkpoints do without."""


class Voices:
    """A speaker verification model, one recording at a time."""

    def __init__(self, model: Any, extractor: Any, judge: Judge) -> None:
        self._model, self._extractor, self.judge = model, extractor, judge

    @classmethod
    def load(cls, name: str, *, root: Path, device: torch.device) -> Voices:
        """Load one in float32.

        Args:
            name: A folder below the project root or as named, or a hub id.
            root: The project root.
            device: Where it runs.

        Raises:
            StepError: It is not there or not complete (66), or is no WavLM (65).
        """
        place, config = judge_config(name, "similarity", "wavlm", root=root)
        try:
            extractor = AutoFeatureExtractor.from_pretrained(place)
            model, info = WavLMForXVector.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, TypeError) as error:
            raise cannot_load(name, "similarity", error) from error
        # A WavLM that was not trained to verify speakers loads too, with its last layers at random.
        missing = sorted(key for key in map(str, info["missing_keys"]) if not key.endswith(_ONLY_IN_TRAINING))
        if missing:
            lacks = f"it lacks weights of speaker verification, such as {missing[0]}"
            raise cannot_load(name, "similarity", ValueError(lacks))
        commit = getattr(config, "_commit_hash", None)
        return cls(model.to(device).eval(), extractor, Judge(name=name, commit=commit))

    @torch.no_grad()
    def embed(self, samples: npt.NDArray[np.float32]) -> torch.Tensor | None:
        """The voice of a recording, 24 kHz mono `[N]`, as a vector; None below half a second."""
        if len(samples) < SHORTEST_SECONDS * SAMPLE_RATE:
            return None
        inputs = self._extractor(resampled(samples), sampling_rate=RATE, return_tensors="pt").to(self._model.device)
        embedding: torch.Tensor = self._model(**inputs).embeddings[0]
        return embedding

    @staticmethod
    def similarity(one: torch.Tensor | None, other: torch.Tensor | None) -> float | None:
        """Cosine of two voices, -1 to 1; None if either is not known."""
        return None if one is None or other is None else float(cosine_similarity(one, other, dim=0))
