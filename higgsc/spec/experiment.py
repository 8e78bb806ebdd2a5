"""The spec as a whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from higgsc.spec.base import EnvironmentName, FilePath, Name, SpecModel
from higgsc.spec.data import Data
from higgsc.spec.hardware import Hardware, Parallelism
from higgsc.spec.loss import Loss
from higgsc.spec.site import Site
from higgsc.spec.tracking import Tracking
from higgsc.spec.training import Checkpoint, Evaluate, Lora, Merge, Training


class Whisper(SpecModel):
    """Experimental: what a frozen Whisper hears of the reference is added to the reference's rows, through a projector
    that is trained with the adapter. It starts at zero, so that the training begins where it would without it.

    The projector is saved beside the adapter, and whoever speaks with it listens with the same Whisper. It cannot be
    merged."""

    encoder: FilePath
    """A Whisper, such as `openai/whisper-large-v3`: hub id or local folder. Only its encoder is used."""
    revision: str | None = None
    """Commit of the hub repository; a hub id without one is a warning."""
    width: int | None = Field(default=None, ge=1, le=16_384)
    """Features of its encoder, `d_model` of its config.json; known of OpenAI's own."""


class Model(SpecModel):
    """The weights that training starts from: frozen below the adapter, or all of them trained."""

    family: Literal["higgs-audio-v2"]
    """The architecture: says which modules exist and what shapes they have."""
    base: FilePath = "bosonai/higgs-audio-v2-generation-3B-base"
    """Hub id, local folder, or `builtin:tiny` (random weights, for trying things out)."""
    revision: str | None = None
    """Commit of the hub repository; a hub base without one is a warning."""
    quantize: Literal["fp8", "int8", "nf4"] | None = None
    """Rounds the frozen matrices of the layers when they are loaded for the training: attention and both FFN paths,
    85 % of the released model. Adapters, norms, embeddings and heads stay as they are. `null` rounds nothing.

    `fp8`: multiplied in 8 bits, forward and for the gradient of the input, on GPUs that can (H100, H200, L40S, L4,
    RTX 4090); for speed. `int8` and `nf4` (QLoRA): stored in 8 or 4 bits and made whole for each product; for memory,
    and slower. What is merged afterwards is the adapter into the base as it was, not as it was rounded."""
    audio_tokenizer: FilePath = "bosonai/higgs-audio-v2-tokenizer"
    """Hub id, local folder, or `builtin:tiny`."""
    audio_tokenizer_revision: str | None = None
    """Commit of the audio tokenizer's repository."""
    whisper: Whisper | None = None
    """Experimental: a frozen Whisper that listens to the reference as well; none if not given."""


class Experiment(SpecModel):
    """A voice-cloning fine-tune of Higgs Audio v2, from data to trained model.

    Relative paths start at the project root: the folder above `specs/`, or the spec's own folder where there is no
    folder of that name."""

    apiVersion: Literal["higgsc/v1"]  # noqa: N815 - the users' spelling
    """Version of the language."""
    name: Name
    """Names the folder of the build, the run and the jobs."""
    extends: FilePath | tuple[FilePath, ...] | None = None
    """Specs that this one builds on, relative to this file; later ones win, this file wins over all."""
    model: Model
    """The weights that training starts from: frozen below the adapter, or all of them trained."""
    data: Data
    """What the model learns from."""
    lora: Lora | None = Lora()
    """The adapter: where, how large. `null` trains no adapter but every parameter of the language model: the attention,
    both FFN paths, norms, embeddings and heads (the audio tokenizer stays as it is).

    That takes 16 bytes a parameter, 92 GB of the released model, which `parallelism.shard` divides between GPUs, and
    smaller learning rates, some 1e-5. Checkpoints are then models that transformers loads, and `merge` has nothing to
    do: `evaluate` takes the best checkpoint itself."""
    hardware: Hardware
    """`8xH200`, `2x8`, `2x8xH100`, `1xCPU`, or a mapping with `nodes`, `gpus_per_node` and `gpu`."""
    parallelism: Parallelism = Parallelism()
    """How the processes divide the work."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of the frozen base; adapters and optimizer are kept in fp32.

    Where the whole model is trained, of what is computed with: weights, gradients and optimizer are kept in fp32."""
    training: Training
    """Length, batch, learning rate."""
    loss: Loss = Loss()
    """Weights of the losses."""
    tracking: Tracking = Tracking()
    """Where the figures of the training are shown."""
    checkpoint: Checkpoint = Checkpoint()
    """How often what is trained is saved and validated."""
    merge: Merge | None = Merge()
    """`null` leaves the adapter unmerged. Where the whole model is trained, it is `null` by itself."""
    evaluate: Evaluate | None = Evaluate()
    """`null` leaves the merged model, or the best checkpoint of a whole model, unevaluated."""
    site: Annotated[Site, BeforeValidator(lambda site: site, json_schema_input_type=Name | Site)] = Site()
    """The cluster: the name of a file in `specs/sites/`, or its words themselves."""
    sweep: dict[str, tuple[Any, ...]] | None = None
    """Keys to lists of values, a plan for each combination; keys joined by commas change together.

    `higgsc submit` hands the combinations to Slurm as tasks of one job array a step; one by one if they differ in what
    they ask Slurm for, or if `site.chain` makes several jobs of a step."""
    secrets: tuple[EnvironmentName, ...] = ()
    """Names of environment variables that the jobs need: set where they run, or each in a file of its own,
    `~/.config/higgsc/secrets/NAME`, which only you can read (`chmod 600`)."""
    output: FilePath | None = None
    """Folder of the run; `runs/<name>` if not given."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the order of the samples, the held-out ones, the adapter's start and the sampling."""
