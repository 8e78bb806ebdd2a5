"""Load the codec that a job names, with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path

import torch

from higgsc.contract.jobs import ModelRef
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.codec import Codec
from higgsc.train.model.builtin import resolve_base


def load_codec(ref: ModelRef, *, root: Path, device: torch.device | str) -> Codec:
    """Load a reference's audio tokenizer: a folder below the project root or as named, `builtin:tiny`, or a hub id.

    Raises:
        StepError: It cannot be read (66), or is not the codec of Higgs Audio v2 (65).
    """
    name = ref.audio_tokenizer
    place = resolve_base(name, "audio_tokenizer", root=root)
    try:
        return Codec.load(place, device=device, revision=ref.audio_tokenizer_revision)
    except OSError as error:
        raise StepError(
            f"cannot load the audio tokenizer `{name}`: {first_line(error)}",
            code=ExitCode.MISSING_INPUT,
            help="name a folder, `builtin:tiny`, or a hub id that this machine can reach or has in its cache",
        ) from error
    except (ValueError, ImportError, AttributeError, RuntimeError) as error:
        # What transformers raises for another model's folder depends on which of its fields it trips over.
        raise StepError(
            f"cannot use the audio tokenizer `{name}`: {first_line(error)}",
            help="name a checkpoint of the Higgs Audio v2 tokenizer in transformers' format",
        ) from error


def first_line(error: Exception) -> str:
    """The first line of a library's message, without its period, as the middle of one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
