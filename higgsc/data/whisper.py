"""What a frozen Whisper hears of a recording, frame by frame of the codec.

Whisper's encoder gives 50 vectors a second (Radford et al., 2022). Two of them are averaged into one, so that vector
`t` is of the same 40 ms as the codec's frame `t`; the last started frame counts, as it does there. The vectors are kept
as bfloat16, by their bits: 64 kB a second of speech with the 1,280 features of `whisper-large-v3`.

Whisper hears 30 seconds at a time. What is longer is heard in windows of that length, one after the other and each by
itself; nothing is cut off.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from higgsc.catalog.codec import HOP_LENGTH, SAMPLE_RATE
from higgsc.contract.jobs import WhisperRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.codec import reproducible_convolutions
from higgsc.data.listener import Listener
from higgsc.data.loading import first_line

RATE: Final = 16_000
"""Samples a second that a Whisper takes."""
_HOP: Final = RATE * HOP_LENGTH // SAMPLE_RATE
"""Of those in a frame of the codec: 640."""
_AVERAGED: Final = 2
"""The encoder's vectors in a frame of the codec."""
_MEL_HOP: Final = 160
_DECIDING: Final = (
    "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "max_source_positions",
    "activation_function", "scale_embedding",
)  # fmt: skip
"""What of the configuration decides what the encoder hears, beside its weights."""


class WhisperEncoder:
    """The encoder in evaluation mode and float32, one recording at a time."""

    kind: Final = "whisper"

    def __init__(self, model: Any, extractor: Any, ref: WhisperRef, *, device: torch.device | str) -> None:
        """Wrap a loaded encoder; `WhisperEncoder.load` is the usual way in.

        Args:
            model: Of a `WhisperModel`, its encoder; it is moved, set to evaluation mode and frozen in place.
            extractor: Its `WhisperFeatureExtractor`.
            ref: How it is named.
            device: Where it runs.

        Raises:
            ValueError: If the two do not fit each other, or not the width that is expected.
        """
        config = model.config
        given = (extractor.sampling_rate, extractor.hop_length, extractor.feature_size, extractor.n_samples)
        wanted = (RATE, _MEL_HOP, config.num_mel_bins, 2 * config.max_source_positions * _MEL_HOP)
        if given != wanted or extractor.n_samples % _HOP:
            raise ValueError(
                "its preprocessor_config.json and config.json do not fit each other: (sampling rate, hop, mel bins, "
                f"samples of a window) are {given} and {wanted}"
            )
        if config.d_model != ref.width:
            raise ValueError(f"it has {config.d_model} features, and {ref.width} were expected")
        self.device, self.width, self._ref = torch.device(device), ref.width, ref
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)
        self._extractor = extractor

    @classmethod
    def load(cls, ref: WhisperRef, *, root: Path, device: torch.device | str) -> WhisperEncoder:
        """Load the encoder that a job names.

        Args:
            ref: A folder below `root` or as named, or a hub id.
            root: The project root.
            device: Where it runs.

        Raises:
            StepError: It cannot be read or lacks weights (66), or is no Whisper of the expected width (65).
        """
        name = ref.encoder
        place = str(root / name) if (root / name).is_dir() else name
        options: dict[str, Any] = {} if ref.revision is None else {"revision": ref.revision}
        try:
            kind = WhisperConfig.get_config_dict(place, **options)[0].get("model_type")
            if kind != "whisper":
                raise StepError(
                    f"`model.whisper.encoder: {name}` is a model of type `{kind}`, not `whisper`",
                    help="name one such as `openai/whisper-large-v3`",
                )
            extractor = WhisperFeatureExtractor.from_pretrained(place, **options)
            model, info = WhisperModel.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True, attn_implementation="sdpa", **options
            )
        except OSError as error:
            raise StepError(
                f"cannot load `model.whisper.encoder: {name}`: {first_line(error)}",
                code=ExitCode.MISSING_INPUT,
                help="name a hub id that this machine can reach or has in its cache, or a folder: from the project's "
                "root, with config.json, preprocessor_config.json and the weights",
            ) from error
        # transformers initialises what is missing at random and only warns.
        missing = sorted(key for key in map(str, info["missing_keys"]) if key.startswith("encoder."))
        if missing:
            raise StepError(
                f"`model.whisper.encoder: {name}` lacks {len(missing)} weights of its encoder, such as {missing[0]}",
                code=ExitCode.MISSING_INPUT,
                help="the folder has to hold the whole model, as on the hub",
            )
        try:
            return cls(model.encoder, extractor, ref, device=device)
        except ValueError as error:
            raise StepError(
                f"cannot listen with `model.whisper.encoder: {name}`: {error}",
                help="`width` in the spec's `model.whisper` is `d_model` of its config.json",
            ) from error

    @property
    def listener(self) -> Listener:
        """Which one this is."""
        return Listener(**self._ref.model_dump(), fingerprint=self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, in hex: equal for encoders that hear the same.

        The decoder does not enter it, nor do names and dates.
        """
        digest = hashlib.sha256()
        for chunk in self._identity():
            digest.update(len(chunk).to_bytes(8, "big"))
            digest.update(chunk)
        return digest.hexdigest()

    def _identity(self) -> Iterator[bytes | memoryview]:
        decides = {name: getattr(self.model.config, name) for name in _DECIDING}
        extractor = self._extractor
        decides |= {"n_fft": extractor.n_fft, "n_samples": extractor.n_samples, "dither": extractor.dither}
        yield json.dumps(decides, sort_keys=True).encode()
        for name, tensor in sorted(self.model.state_dict().items()):
            yield f"{name} {list(tensor.shape)}".encode()
            yield memoryview(tensor.cpu().contiguous().view(-1).numpy()).cast("B")

    @torch.inference_mode()
    def encode(self, wave: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Listen to one recording.

        Args:
            wave: Mono samples at 24 kHz, float32, `[N]`, N at least 1, full scale at 1.

        Returns:
            What is heard, the bits of bfloat16, `[ceil(N / 960), width]`.

        Raises:
            ValueError: If nothing finite can be heard of it.
        """
        if not wave.size or not np.isfinite(wave).all():
            raise ValueError("no samples to listen to" if not wave.size else "samples are not all finite")
        frames = math.ceil(wave.size / HOP_LENGTH)
        sound = np.zeros(frames * _HOP, dtype=np.float32)
        made = resampled(wave)[: len(sound)]
        sound[: len(made)] = made
        window = self._extractor.n_samples
        with reproducible_convolutions():
            heard = [self._window(sound[start : start + window]) for start in range(0, len(sound), window)]
        joined = torch.cat(heard)[:frames].to("cpu", torch.bfloat16)
        if not bool(joined.isfinite().all()):
            raise ValueError("what is heard is not finite")
        return np.ascontiguousarray(joined.view(torch.int16).numpy().view(np.uint16))

    def _window(self, sound: NDArray[np.float32]) -> torch.Tensor:
        """A window of at most 30 s, filled up with silence; `[frames of a whole window, width]`."""
        mels = self._extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        hidden: torch.Tensor = self.model(mels.to(self.device)).last_hidden_state[0]
        return hidden.reshape(-1, _AVERAGED, hidden.shape[1]).mean(dim=1)


def resampled(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """24 kHz as 16 kHz, mono `[N]`."""
    made: NDArray[np.float32] = soxr.resample(samples, SAMPLE_RATE, RATE, quality="HQ")
    return made
