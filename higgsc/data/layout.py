"""The chat layout: from the texts of a voice-cloning sample to token ids with two gaps for audio.

The model was trained on voice cloning as five turns: system (with an optional scene), the reference's text,
the reference's audio, the text to speak, the audio to predict. `ChatLayout` renders them with the
checkpoint's own chat template and cuts the result at the two audio placeholders, so the ids are those that
transformers' `HiggsAudioV2Processor` gives, whatever the checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from higgsc.catalog.codec import AUDIO_DELAY, AUDIO_EOS, AUDIO_OUT, AUDIO_OUT_BOS, END_OF_TURN
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.text import SOUND_EVENTS

DEFAULT_SYSTEM = "Generate audio following instruction."
"""The system text that the model was trained with; used where a sample gives none."""

_EVENTS = re.compile("|".join(map(re.escape, SOUND_EVENTS.values())))

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Token ids around the two clips of a sample, int64; the clips' placeholders are not part of them."""

    prefix: Ids
    """Up to and including the reference's `<|audio_out_bos|>`."""
    middle: Ids
    """From the reference's `<|audio_eos|>` to the target's `<|audio_out_bos|>`, both included."""
    suffix: Ids
    """What follows the target: `<|audio_eos|><|eot_id|>`."""


class ChatLayout:
    """A checkpoint's tokenizer and chat template, as far as voice cloning needs them."""

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        """Wrap a loaded tokenizer; `ChatLayout.load` is the usual way in.

        Args:
            tokenizer: A transformers tokenizer with a chat template.
            name: What to call the checkpoint in errors.

        Raises:
            StepError: It has no chat template, or lacks one of the tokens around audio.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise StepError(
                f"the tokenizer of {name} has no chat template",
                help="use the transformers version of the checkpoint, which holds chat_template.jinja",
            )
        self._tokenizer = tokenizer
        self._name = name
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self._control = re.compile("|".join(re.escape(token) for token in sorted(added, reverse=True)))
        self.audio_token_id = self._id(AUDIO_OUT)
        """Placeholder of an audio row."""
        self.audio_delay_token_id = self._id(AUDIO_DELAY)
        """Placeholder of a clip's last seven rows."""
        self.audio_out_bos_id = self._id(AUDIO_OUT_BOS)
        """Opens a clip."""
        self.audio_eos_id = self._id(AUDIO_EOS)
        """Closes a clip."""
        self.end_of_turn_id = self._id(END_OF_TURN)
        """Closes a turn."""

    @classmethod
    def load(cls, base: str | Path, revision: str | None = None) -> ChatLayout:
        """Load the tokenizer and chat template of a base checkpoint.

        Args:
            base: Folder, hub id or `builtin:tiny`.
            revision: Commit, tag or branch on the hub.

        Raises:
            StepError: They cannot be read (66), or are not those of a Higgs Audio v2 checkpoint (65).
        """
        # Imported here, as both load torch, which neither the layout's constants nor its types need.
        from transformers import AutoTokenizer

        from higgsc.train.model.builtin import resolve_base

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(resolve_base(str(base))), revision=revision)
        except (OSError, ValueError) as error:
            raise StepError(
                f"cannot load the tokenizer of the base {base}: {str(error).splitlines()[0]}",
                code=ExitCode.MISSING_INPUT,
                help="name a folder or hub id of a Higgs Audio v2 checkpoint in transformers' format",
            ) from error
        return cls(tokenizer, name=str(base))

    def segments(self, *, system: str, scene: str | None, reference_text: str, target_text: str) -> Segments:
        """Lay one voice-cloning sample out.

        Args:
            system: System text, such as `DEFAULT_SYSTEM`.
            scene: Description of the recording's surroundings, or None to leave the scene out.
            reference_text: What the reference says.
            target_text: What the target says, or shall say.

        Raises:
            ValueError: A text holds a control token of the tokenizer, such as `<|eot_id|>`.
            StepError: The checkpoint's chat template is not that of Higgs Audio v2.
        """
        texts = {
            "system text": system,
            "scene": scene or "",
            "reference text": reference_text,
            "target text": target_text,
        }
        for what, text in texts.items():
            # The clean-up refuses them in what people write, and puts these in itself.
            if found := self._control.search(_EVENTS.sub("", text)):
                raise ValueError(f"the {what} holds the control token {found.group()}")
        audio = {"role": "assistant", "content": [{"type": "audio"}]}
        messages = [
            {"role": "system", "content": system},
            *([] if scene is None else [{"role": "scene", "content": scene}]),
            {"role": "user", "content": reference_text},
            audio,
            {"role": "user", "content": target_text},
            audio,
        ]
        try:
            rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            raise StepError(
                f"the chat template of {self._name} refuses a voice-cloning conversation: {error}"
            ) from error
        parts = rendered.split(AUDIO_OUT)
        if len(parts) != 3:
            raise StepError(
                f"the chat template of {self._name} makes {len(parts) - 1} audio placeholders of a "
                "voice-cloning conversation, where Higgs Audio v2 has 2"
            )
        prefix, middle, suffix = (self._ids(part) for part in parts)
        if not (
            prefix[-1] == middle[-1] == self.audio_out_bos_id
            and middle[0] == self.audio_eos_id
            and suffix.tolist() == [self.audio_eos_id, self.end_of_turn_id]
        ):
            raise StepError(f"the chat template of {self._name} puts no clip between {AUDIO_OUT_BOS} and {AUDIO_EOS}")
        return Segments(prefix=prefix, middle=middle, suffix=suffix)

    def _ids(self, text: str) -> Ids:
        # The template writes <|begin_of_text|> itself. Cutting at a control token changes no ids: the
        # tokenizer takes those out before it looks at the text between them.
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def _id(self, token: str) -> int:
        index = self._tokenizer.get_added_vocab().get(token)
        if index is None:
            raise StepError(
                f"the tokenizer of {self._name} does not know {token}; this is no Higgs Audio v2 checkpoint"
            )
        return int(index)
