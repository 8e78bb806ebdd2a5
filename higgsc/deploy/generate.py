"""Speech in the voice of a reference: prompt, transformers' own `generate`, codes, waveform.

    speaker = Speaker.load("runs/arabic/merged")
    voice = speaker.voice(Path("voice.wav"), "what the recording says")
    speech = speaker.speak(voice, "what to say")
    write_wav(Path("out.wav"), speech.wave)

One text at a time: sampled speech of a batch would not be that of its texts alone, as sums of another shape round
differently and the draws of one text would depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from higgsc.catalog.codec import FRAMES_PER_SECOND, RELEASED_TOKENIZER, SAMPLE_RATE
from higgsc.contract.jobs import TextJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.codec import Codec
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout
from higgsc.data.loading import load_codec
from higgsc.data.records import AudioSpan
from higgsc.data.text import DEFAULT_TEXT
from higgsc.data.whisper import WhisperEncoder
from higgsc.deploy.adapted import load_listener, put_on
from higgsc.deploy.base import folder_ref, stored_dtype
from higgsc.deploy.chunks import MAX_CHARACTERS, chunks
from higgsc.deploy.voice import Voice, Wave, encode_voice, read_reference, spoken_text
from higgsc.train.decoder.heard import listening, projector_of
from higgsc.train.model.build import load_base
from higgsc.train.model.folder import base_folder
from higgsc.train.seeds import Purpose, torch_seed
from higgsc.train.speech.sampling import Sampling
from higgsc.train.speech.speak import Codes, Ids, prompt, speak, spoken_codes

DEFAULT_SAMPLING = Sampling()


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

    def __init__(
        self,
        model: Any,
        layout: ChatLayout,
        codec: Codec,
        *,
        text: TextJob = DEFAULT_TEXT,
        listener: WhisperEncoder | None = None,
    ) -> None:
        """Wrap loaded parts; `Speaker.load` is the usual way in.

        Args:
            model: `HiggsAudioV2ForConditionalGeneration` in evaluation mode.
            layout: Chat layout of the same checkpoint.
            codec: The audio tokenizer.
            text: How texts are normalised: as they were when the model was trained.
            listener: The Whisper that the model was trained with, if with one; it takes voices from recordings.
        """
        self._model, self._layout, self._codec, self._text = model, layout, codec, text
        self._listener = listener

    @classmethod
    def load(
        cls,
        model: str | Path,
        audio_tokenizer: str | Path = RELEASED_TOKENIZER,
        *,
        adapter: str | Path | None = None,
        revision: str | None = None,
        text: TextJob = DEFAULT_TEXT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Speaker:
        """Load a merged model, a base, or a base with an adapter on it.

        Args:
            model: Folder, hub id or `builtin:tiny`.
            audio_tokenizer: Folder, hub id or `builtin:tiny`.
            adapter: Folder of an adapter in PEFT's format, or of a checkpoint; it is not merged.
            revision: Commit, tag or branch of the model on the hub.
            text: How texts are normalised: as they were when the model was trained.
            device: Where all of them run.
            dtype: Dtype the model computes in, None being the one it is stored in; the codec's is float32.

        Raises:
            StepError: One of them cannot be read (66), or is not what it should be (65); see `put_on`. So also of the
                Whisper that the adapter was trained with.
        """
        folder, device = base_folder(str(model), revision, root=Path.cwd()), torch.device(device)
        ref = folder_ref(folder, audio_tokenizer=str(audio_tokenizer))
        loaded = load_base(ref, root=folder, dtype=dtype or stored_dtype(folder), device=device)
        if adapter is not None:
            loaded = put_on(loaded, Path(adapter), base=folder)
        codec = load_codec(ref, root=Path.cwd(), device=device)
        listener = load_listener(loaded, root=Path.cwd(), device=device)
        return cls(loaded, ChatLayout.load(folder), codec, text=text, listener=listener)

    def clean(self, text: str) -> str:
        """A text in the form that was learned, and that is spoken.

        Raises:
            StepError: It is empty, or holds a control token (2).
        """
        return spoken_text(text, self._text)

    def voice(self, reference_audio: Path | AudioSpan | Wave, reference_text: str) -> Voice:
        """Take the voice of a recording, for any number of texts.

        Args:
            reference_audio: A file, a part of one, or mono samples at 24 kHz, float32 `[N]`.
            reference_text: What it says.

        Raises:
            StepError: The text is empty or holds a control token (2); the recording is missing (66), or too short, too
                long, silent, or no audio (65).
        """
        self.clean(reference_text)  # before the recording is read: a mistake that costs nothing to find
        return encode_voice(self._codec, read_reference(reference_audio), reference_text, self._text, self._listener)

    def speak(
        self,
        voice: Voice,
        text: str,
        *,
        seed: int = 0,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_seconds: float = 30.0,
        system: str = DEFAULT_SYSTEM,
        scene: str | None = None,
        after_row: Callable[[], None] | None = None,
    ) -> Speech:
        """Say a text in a voice; a long one piece by piece, see `pieces`, which has the same arguments.

        Returns:
            All pieces, one after the other; finished if each of them is.
        """
        said = list(
            self.pieces(
                voice, text, seed=seed, sampling=sampling, max_seconds=max_seconds, system=system, scene=scene,
                after_row=after_row,
            )
        )  # fmt: skip
        return Speech(
            wave=np.concatenate([piece.wave for piece in said]),
            codes=np.concatenate([piece.codes for piece in said]),
            finished=all(piece.finished for piece in said),
        )

    def pieces(
        self,
        voice: Voice,
        text: str,
        *,
        seed: int = 0,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_seconds: float = 30.0,
        system: str = DEFAULT_SYSTEM,
        scene: str | None = None,
        after_row: Callable[[], None] | None = None,
    ) -> Iterator[Speech]:
        """Say a text in a voice, a piece of some sentences at a time, each as soon as it is said.

        Every piece is a prompt of its own, with the same reference, in the five turns that the model was trained on.
        What was said before is no part of it: a conversation of more turns is none that a fine-tuned model has seen,
        and one slip would be carried on to the end. Nothing is put between the pieces.

        Args:
            voice: From `voice`.
            text: What to say, at most `MAX_CHARACTERS`.
            seed: The same seed on the same machine gives the same speech. The first piece takes it as it is, each of
                the others one that is derived from it.
            sampling: How codes are drawn.
            max_seconds: Where to cut a piece off that has not ended by itself.
            system: The system's turn, as in training.
            scene: Description of the recording's surroundings, which stands in that turn; None if there is none.
            after_row: Called after each row of codes, 25 a second of speech; what it raises ends it, and comes out.

        Raises:
            StepError: The text is empty, too long or holds a control token, or an argument makes no sense (2). All of
                this is found before anything is said.
        """
        segments = [self._segments(voice, piece, system, scene) for piece in self._checked(text, seed)]
        return (
            self.respond(
                prefix,
                voice.codes,
                middle,
                heard=voice.heard,
                seed=seed if index == 0 else torch_seed(seed, Purpose.SAMPLING, index),
                sampling=sampling,
                max_seconds=max_seconds,
                after_row=after_row,
            )
            for index, (prefix, middle) in enumerate(segments)
        )

    def _checked(self, text: str, seed: int) -> list[str]:
        if not 0 <= seed < 2**63:
            raise StepError(f"the seed is {seed}; it has to be between 0 and 2^63 - 1", code=ExitCode.USAGE)
        if len(text) > MAX_CHARACTERS:
            raise StepError(
                f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are spoken in one go",
                code=ExitCode.USAGE,
                help="speak it in parts",
            )
        self.clean(text)
        return chunks(text)

    def _segments(self, voice: Voice, text: str, system: str, scene: str | None) -> tuple[Ids, Ids]:
        try:
            segments = self._layout.segments(
                system=system,
                scene=scene,
                reference_text=voice.text,
                target_text=self.clean(text),
            )
        except ValueError as error:
            raise StepError(
                f"cannot speak this: {error}", code=ExitCode.USAGE, help="give what is said in plain words"
            ) from error
        return segments.prefix, segments.middle

    def respond(
        self,
        prefix: Ids,
        reference: Codes,
        middle: Ids,
        *,
        seed: int,
        sampling: Sampling,
        max_seconds: float,
        heard: Codes | None = None,
        after_row: Callable[[], None] | None = None,
    ) -> Speech:
        """Continue a prompt that is already laid out, such as that of a stored sample.

        Args:
            prefix: Token ids before the reference's rows; see `higgsc.data.layout.Segments`.
            reference: Codes of the reference, `[T, 8]`.
            middle: Token ids from the reference to the target.
            seed: See `pieces`.
            sampling: See `pieces`.
            max_seconds: See `pieces`.
            heard: What a Whisper heard of the reference, for a model that was trained with one; others do not listen.
            after_row: See `pieces`.

        Raises:
            StepError: The length is not even a frame, or the model listens and nothing was heard (2).
        """
        frames = int(max_seconds * FRAMES_PER_SECOND)
        if frames < 1:
            raise StepError(f"at most {max_seconds:g} s: a frame takes {1 / FRAMES_PER_SECOND:g}", code=ExitCode.USAGE)
        inputs = self.prompt(prefix, reference, middle)
        settings = self._model.generation_config
        decoder = self._model.model
        if heard is None and projector_of(decoder) is not None:
            raise StepError(
                "the adapter was trained with a Whisper, and nothing of the reference was heard",
                code=ExitCode.USAGE,
                help="take the voice by `Speaker.voice`, of a speaker that `Speaker.load` made",
            )
        with listening(decoder, heard, prefix=len(prefix)):
            rows = speak(
                self._model.generate, settings, inputs, frames, seed=seed, sampling=sampling, after_row=after_row
            )
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
