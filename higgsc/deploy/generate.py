"""Speech in the voice of a reference: prompt, transformers' own `generate`, codes, waveform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from higgsc.catalog.codec import (
    FRAMES_PER_SECOND,
    SAMPLE_RATE,
)
from higgsc.contract.jobs import TextJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.audio import read_mono
from higgsc.data.codec import Codec
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout
from higgsc.data.loading import load_codec
from higgsc.data.text import DEFAULT_TEXT, clean_text
from higgsc.deploy.base import folder_ref, stored_dtype
from higgsc.train.model.build import load_base
from higgsc.train.model.folder import base_folder
from higgsc.train.speech.speak import Codes, Ids, prompt, speak, spoken_codes

MAX_REFERENCE_SECONDS = 60.0
"""Longest reference that is read; the model was trained with references of some ten seconds."""

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What was said."""

    wave: Wave
    """Samples at 24 kHz, `[T * 960]`; empty if the model ended before the first frame."""
    codes: Codes
    """Codes of the frames, `[T, 8]`, each below 1024."""
    finished: bool
    """Whether the model ended by itself, rather than being cut off."""

    @property
    def seconds(self) -> float:
        """Length of the wave."""
        return len(self.wave) / SAMPLE_RATE


class Speaker:
    """A model with its codec and prompt layout, ready to speak."""

    def __init__(self, model: Any, layout: ChatLayout, codec: Codec, *, text: TextJob = DEFAULT_TEXT) -> None:
        """Wrap loaded parts; `Speaker.load` is the usual way in.

        Args:
            model: `HiggsAudioV2ForConditionalGeneration` in evaluation mode.
            layout: Chat layout of the same checkpoint.
            codec: The audio tokenizer.
            text: How texts are normalised: as they were when the model was trained.
        """
        self._model, self._layout, self._codec, self._text = model, layout, codec, text

    @classmethod
    def load(
        cls,
        model: str | Path,
        audio_tokenizer: str | Path,
        *,
        text: TextJob = DEFAULT_TEXT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Speaker:
        """Load a merged model, or a base.

        Args:
            model: Folder, hub id or `builtin:tiny`.
            audio_tokenizer: Folder, hub id or `builtin:tiny`.
            text: How texts are normalised: as they were when the model was trained.
            device: Where both run.
            dtype: Dtype the model computes in, None being the one it is stored in; the codec's is float32.

        Raises:
            StepError: One of the two cannot be read (66), or is not a complete Higgs Audio v2 checkpoint (65).
        """
        folder, device = base_folder(str(model), None, root=Path.cwd()), torch.device(device)
        ref = folder_ref(folder, audio_tokenizer=str(audio_tokenizer))
        return cls(
            load_base(ref, root=folder, dtype=dtype or stored_dtype(folder), device=device),
            ChatLayout.load(folder),
            load_codec(ref, root=Path.cwd(), device=device),
            text=text,
        )

    def speak(
        self,
        reference_audio: Path | Wave,
        reference_text: str,
        target_text: str,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        max_seconds: float = 30.0,
    ) -> Speech:
        """Say a text in the voice of a reference.

        Args:
            reference_audio: Recording of the voice: a file, or mono samples at 24 kHz, float32 `[N]`.
            reference_text: What it says.
            target_text: What to say.
            seed: The same seed on the same machine gives the same speech.
            temperature: Of the sampling; 0 takes the likeliest code each time.
            max_seconds: Where to cut the speech off if it has not ended by itself.

        Raises:
            StepError: A text is empty or holds a control token, or an argument makes no sense (2); the reference is
                missing (66) or is not audio that can be used (65).
        """
        try:
            segments = self._layout.segments(
                system=DEFAULT_SYSTEM,
                scene=None,
                reference_text=clean_text(reference_text, self._text),
                target_text=clean_text(target_text, self._text),
            )
        except ValueError as error:
            raise StepError(
                f"cannot speak this: {error}", code=ExitCode.USAGE, help="give what is said in plain words"
            ) from error
        if isinstance(reference_audio, Path):
            wave = read_mono(reference_audio, max_seconds=MAX_REFERENCE_SECONDS)
        else:
            wave = reference_audio
        try:
            reference = self._codec.encode(wave)
        except ValueError as error:
            raise StepError(f"cannot use this reference: {error}") from error
        return self.respond(
            segments.prefix, reference, segments.middle, seed=seed, temperature=temperature, max_seconds=max_seconds
        )

    def respond(
        self,
        prefix: Ids,
        reference: Codes,
        middle: Ids,
        *,
        seed: int,
        temperature: float,
        max_seconds: float,
    ) -> Speech:
        """Continue a prompt that is already laid out, such as that of a stored sample.

        Args:
            prefix: Token ids before the reference's rows; see `higgsc.data.layout.Segments`.
            reference: Codes of the reference, `[T, 8]`.
            middle: Token ids from the reference to the target.
            seed: See `speak`.
            temperature: See `speak`.
            max_seconds: See `speak`.

        Raises:
            StepError: The temperature is negative, or the length is not even a frame (2).
        """
        frames = int(max_seconds * FRAMES_PER_SECOND)
        if temperature < 0 or frames < 1:
            raise StepError(
                f"temperature {temperature:g} and at most {max_seconds:g} s: the first is at least 0, "
                f"the second at least {1 / FRAMES_PER_SECOND:g}",
                code=ExitCode.USAGE,
            )
        inputs = self.prompt(prefix, reference, middle)
        settings = self._model.generation_config
        rows = speak(self._model.generate, settings, inputs, frames, seed=seed, temperature=temperature)
        codes, finished = spoken_codes(rows)
        codes = codes[:frames]  # rows enough for an end after the last frame hold one frame more without it
        wave = self._codec.decode(codes) if len(codes) else np.zeros(0, dtype=np.float32)
        return Speech(wave=wave, codes=codes, finished=finished)

    def prompt(self, prefix: Ids, reference: Codes, middle: Ids) -> dict[str, torch.Tensor]:
        """The model's inputs for a prompt; those that transformers' processor makes of the conversation.

        Returns:
            `input_ids` and `attention_mask` `[1, L]`, `audio_input_ids` `[1, M, 8]` and `audio_input_ids_mask`
            `[1, M]`, on the model's device.
        """
        layout = self._layout
        return prompt(
            prefix,
            reference,
            middle,
            placeholder=layout.audio_token_id,
            delay=layout.audio_delay_token_id,
            device=self._model.device,
        )
