"""Speech in the voice of a reference: prompt, transformers' own `generate`, codes, waveform."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from higgsc.catalog.codec import (
    CODEBOOK_ENTRIES,
    CODEBOOKS,
    DELAY_ROWS,
    EXTRA_ROWS_PER_CLIP,
    FRAMES_PER_SECOND,
    SAMPLE_RATE,
    STREAM_EOS,
)
from higgsc.contract.jobs import TextJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.audio import read_mono
from higgsc.data.codec import Codec
from higgsc.data.delay import apply_delay
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout
from higgsc.data.loading import load_codec
from higgsc.data.text import DEFAULT_TEXT, clean_text
from higgsc.deploy.base import base_folder, folder_ref, stored_dtype
from higgsc.train.model import load_base

MAX_REFERENCE_SECONDS = 60.0
"""Longest reference that is read; the model was trained with references of some ten seconds."""

Codes = npt.NDArray[np.uint16]
Wave = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


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
        rows = self._generate(self.prompt(prefix, reference, middle), frames, seed=seed, temperature=temperature)
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
        # The logits processor of transformers takes the last eight ids for the state of the delay pattern: the
        # placeholders of the reference must not be among them.
        assert len(middle) >= CODEBOOKS, "the turn between reference and target has eight tokens"
        rows = apply_delay(reference)
        placeholders = np.full(len(rows), self._layout.audio_token_id)
        placeholders[-DELAY_ROWS:] = self._layout.audio_delay_token_id
        ids = torch.from_numpy(np.concatenate((prefix, placeholders, middle)))[None]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "audio_input_ids": torch.from_numpy(rows)[None],
            "audio_input_ids_mask": torch.ones((1, len(rows)), dtype=torch.bool),
        }
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    @torch.inference_mode()
    def _generate(
        self, inputs: dict[str, torch.Tensor], frames: int, *, seed: int, temperature: float
    ) -> npt.NDArray[np.int64]:
        """Rows of the answer, `[R, 8]`, from the all-BOS row on; R is at most `frames + 9`."""
        device = self._model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            result = self._model.generate(
                **inputs, generation_config=self._settings(frames + EXTRA_ROWS_PER_CLIP, temperature)
            )
        rows: npt.NDArray[np.int64] = result[0, inputs["audio_input_ids"].shape[1] :].cpu().numpy()
        return rows

    def _settings(self, rows: int, temperature: float) -> GenerationConfig:
        """The checkpoint's settings with this call's; `generate` takes the repetition window from here alone."""
        settings = copy.deepcopy(self._model.generation_config)
        settings.max_new_tokens, settings.do_sample = rows, temperature > 0
        if temperature > 0:
            settings.temperature = temperature
            return settings
        # What is None here, `generate` fills in from the checkpoint; these are the values that do nothing.
        settings.temperature, settings.top_p, settings.top_k = 1.0, 1.0, 50
        if getattr(settings, "ras_win_len", None) is not None:
            # Repetition-aware sampling draws at random where codes repeat, under greedy search too. A window of
            # this many rows cannot hold more repeats than that.
            settings.ras_win_max_num_repeat = settings.ras_win_len + 1
        return settings


def spoken_codes(rows: npt.NDArray[np.int64]) -> tuple[Codes, bool]:
    """Take the codes of an answer out of its rows, which need not be well-formed.

    Nothing keeps a model from a stream marker in the middle, or from ending one codebook before the others. The
    answer is what comes before the first frame with such a marker: no code is invented in its place.

    Args:
        rows: Rows `[R, 8]` with delay, the first of them all BOS, R at least 1.

    Returns:
        Codes `[T, 8]`, each below 1024, T possibly 0; and whether the answer came to its end, without complete
        frames after the last one taken.
    """
    codebooks = rows.shape[1]
    frames = max(len(rows) - codebooks, 0)
    codes = np.stack([rows[k + 1 : k + 1 + frames, k] for k in range(codebooks)], axis=1)
    complete: npt.NDArray[np.bool_] = np.all(codes < CODEBOOK_ENTRIES, axis=1)
    length = frames if complete.all() else int(np.argmin(complete))
    ended = bool((rows[-1] == STREAM_EOS).all()) and not complete[length:].any()
    return codes[:length].astype(np.uint16), ended
