"""What the model learns from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from higgsc.spec.base import FilePath, SpecModel

Format = Literal[
    "auto",
    "chatml",
    "mixed",
    "manifest",
    "paired",
    "conversations",
    "ms-swift",
    "nemo",
    "ljspeech",
    "train-higgs-audio",
    "canonical",
]


class Source(SpecModel):
    """A file of voice-cloning samples."""

    path: FilePath
    """Relative to the project root, or a URL. Audio paths inside the file are relative to the file."""
    format: Format = "auto"
    """`auto` looks into the file; `higgsc data convert` shows what it found, and why."""
    pairing: Literal["same-speaker"] | None = None
    """`same-speaker` gives each recording without a reference another one of its speaker, chosen by the seed."""
    speaker: str | None = Field(default=None, min_length=1)
    """Speaker of the rows that name none. Needed to pair recordings of one voice whose file does not say whose."""


class Text(SpecModel):
    """How texts are normalised, beyond what the model's makers do. `higgsc generate` has the same options."""

    digits: Literal["keep", "western", "arabic"] = "keep"
    """Arabic-Indic digits to 0-9 (`western`), or 0-9 to Arabic-Indic digits (`arabic`)."""
    diacritics: Literal["keep", "remove"] = "keep"
    """Arabic vowel marks and Quranic signs."""
    tatweel: Literal["keep", "remove"] = "remove"
    """The stroke that makes Arabic words longer, as in محمـــد."""
    presentation_forms: Literal["keep", "compose"] = "compose"
    """Arabic letters by their shape and ligatures, as old software wrote them, to plain letters."""


class Validation(SpecModel):
    """Samples held out from training."""

    by: Literal["sample", "speaker"] = "sample"
    """`speaker` holds out all samples of some speakers, so that validation is on voices that were never heard."""

    fraction: float = Field(default=0.02, ge=0, le=0.5)
    """Share of the samples, chosen by a hash of their ids (or speakers) and the seed; at least one unless 0."""


class Limits(SpecModel):
    """Which samples are fit for training. The others are rejected, counted and listed by name."""

    min_seconds: float = Field(default=0.5, gt=0)
    """Shortest reference or target recording."""
    max_seconds: float = Field(default=30.0, gt=0, le=600)
    """Longest reference or target recording."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of rejected samples past which preparation stops instead of going on without them."""


class Prepare(SpecModel):
    """How the recordings are encoded."""

    shards: int = Field(default=1, ge=1, le=1000)
    """Above 1, a step `encode` comes before `prepare`: on Slurm an array of so many tasks that share the recordings
    out among themselves, elsewhere one task that encodes them all. The store is the same whatever the number."""
    workers: int | None = Field(default=None, ge=1, le=256)
    """Recordings that a task works on at a time: without a GPU, processes that encode; with one, threads that read.
    As many as there are cores if not given."""
    cache: FilePath | None = None
    """Folder of codes by the audio that they were made from, so that no recording is encoded twice; `.codes` beside
    the run's folder if not given."""


class Data(SpecModel):
    """What the model learns from."""

    train: tuple[Source, ...] = Field(min_length=1)
    """Files of samples, on this machine or at `s3://`, `gs://`, `hf://` or `abfs://`."""
    roots: tuple[FilePath, ...] = ()
    """Folders inside which audio may lie, besides the project and the folder of the data file; links may lead there."""
    text: Text = Text()
    """How texts are normalised."""
    validation: Validation = Validation()
    """Samples held out from training."""
    limits: Limits = Limits()
    """Which samples are fit for training."""
    prepare: Prepare = Prepare()
    """How the recordings are encoded."""
    store: FilePath | None = None
    """Folder or URL of the encoded samples; `<output>/store` if not given."""
