"""`evaluation.json`: what the evaluate step measured, for programs and for its own page."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

EVALUATION_FILE = "evaluation.json"
PAGE_FILE = "evaluation.html"

Kind = Literal["base", "adapter", "merged", "whole", "model"]
"""What is compared: the base; base and adapter, unmerged; a merged model; a checkpoint of the whole model; a model of
unknown origin."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, use_attribute_docstrings=True)


class Losses(_Frozen):
    """Mean cross-entropy over the labels of the held-out samples, in nats, with the text and the codes given."""

    audio: float
    """Over all codes; a uniform guess has 6.93."""
    text: float
    audio_codebooks: tuple[float, ...]
    """Of each codebook; their mean is `audio`."""


class Heard(_Frozen):
    """What was measured of one WAV file."""

    wav: str
    """File beside the report, 24 kHz mono."""
    seconds: float
    silence: float | None
    """Share of frames of 20 ms below -60 dB of full scale; null for a file shorter than a frame."""
    clipped: float | None
    """Share of samples at full scale; null for an empty file."""
    transcript: str | None
    """What the recogniser understood; null without one."""
    word_errors: float | None
    """Word error rate of the transcript against the prompt's text, both normalised; it can exceed 1."""
    character_errors: float | None
    similarity: float | None
    """Cosine of the speaker embeddings of this and of the reference recording; null where either is below 0.5 s."""


class Spoken(Heard):
    """A prompt, spoken by a model."""

    finished: bool
    """Whether the model ended by itself within `max_seconds` of the prompt."""
    duration_ratio: float
    """Its length over that of the recording of the same text."""
    code_accuracy: float
    """Share of codes that are the recording's, over the longer of the two; 1 only if they are identical."""
    took_seconds: float
    """Time to generate and to decode it."""


class Prompt(_Frozen):
    """One sample of the store: a voice and a text, and who said it how."""

    id: str
    speaker: str
    reference_text: str
    target_text: str
    seed: int
    """Of the sampling, the same for every model."""
    max_seconds: float
    """Where speech was cut off."""
    reference: str
    """The voice to speak in: a WAV file beside the report."""
    recording: Heard
    """The sample's own recording of the text, as the audio tokenizer gives it back: the best that there is."""
    spoken: dict[Kind, Spoken]
    """By each of the models, in their order."""


class Totals(_Frozen):
    """Over all prompts, by one voice."""

    spoken: int
    finished: int | None
    """Null for recordings, as all that follows which is about generating."""
    silence: float | None
    """Mean of the prompts'."""
    clipped: float | None
    """Mean of the prompts'."""
    duration_ratio: float | None
    """All the seconds over all those of the recordings."""
    code_accuracy: float | None
    """Mean of the prompts'."""
    samples_per_second: float | None
    """Prompts spoken in a second, one after the other."""
    real_time_factor: float | None
    """Seconds that a second of speech took; below 1 is faster than it plays."""
    word_errors: float | None
    """All the errors over all the words."""
    character_errors: float | None
    similarity: float | None
    """Mean of the prompts'."""


class Judge(_Frozen):
    """A model that measures."""

    name: str
    commit: str | None
    """Of its repository on the hub; null for a folder."""


class Measured(_Frozen):
    """One of the models, and what it came to."""

    place: str
    """Where it is, from the project root; of the base, its hub id or folder."""
    losses: Losses
    totals: Totals


class Evaluation(_Frozen):
    """What `evaluation.json` holds."""

    evaluation_schema: Literal["higgsc.evaluation/v3"] = "higgsc.evaluation/v3"
    higgsc: str
    name: str
    """Of the plan."""
    revision: str | None
    """Of the base on the hub."""
    audio_tokenizer: str
    store: str
    store_sha256: str
    """Of the store's record."""
    dtype: str
    """Number format that all of the models compute in: the one that the last is stored in."""
    device: str
    seed: int
    temperature: float
    prompts: Literal["held-out", "training"]
    language: str | None
    recogniser: Judge | None
    similarity: Judge | None
    spec_sha256: str | None
    """Of the resolved spec; null where none was found."""
    held_out: int
    """Samples that the losses are of."""
    models: dict[Kind, Measured]
    """From the base to what is deployed, each at most once."""
    recordings: Totals
    samples: tuple[Prompt, ...]
