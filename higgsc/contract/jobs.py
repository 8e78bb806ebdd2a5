"""Job files: what `higgsc build` writes and `higgsc run-step` reads.

Every path inside a job file is relative to the project root, and `JobBase.root` says where that is as seen from
the job file itself. A job file therefore holds no absolute path, is the same bytes on every machine, and runs
the same from any folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from higgsc.contract.outcome import ExitCode, StepError

JOB_SCHEMA: Literal["higgsc.job/v1"] = "higgsc.job/v1"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class WhisperRef(_Frozen):
    """The frozen Whisper that listens to references; see `higgsc.data.whisper`."""

    encoder: str
    """Hub id or local folder."""
    revision: str | None
    width: int
    """Features of its encoder's output."""


class ModelRef(_Frozen):
    """The frozen weights that a run starts from."""

    base: str
    """Hub id, local folder, or `builtin:tiny`."""
    revision: str | None
    audio_tokenizer: str
    audio_tokenizer_revision: str | None
    whisper: WhisperRef | None = None
    """What listens to references beside the audio tokenizer; None: nothing does."""


class DataSource(_Frozen):
    path: str
    format: str
    pairing: Literal["same-speaker"] | None = None
    speaker: str | None = None
    """Of the rows that name none."""


class TextJob(_Frozen):
    """How a text is normalised before it is learned or spoken, beyond what the model's makers do."""

    digits: Literal["keep", "western", "arabic"] = "keep"
    diacritics: Literal["keep", "remove"] = "keep"
    tatweel: Literal["keep", "remove"] = "remove"
    presentation_forms: Literal["keep", "compose"] = "compose"


class DataLimits(_Frozen):
    min_seconds: float
    max_seconds: float
    max_bad_fraction: float


class LoraJob(_Frozen):
    """LoRA as resolved by the compiler; the trainer refuses to start when the model disagrees."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    """Module paths or dotted suffixes of them, as PEFT's `target_modules`."""
    full: tuple[str, ...] = ()
    """Module paths whose weight is trained whole, as PEFT's `modules_to_save`."""
    rank_pattern: dict[str, int] = {}
    """PEFT's `rank_pattern`: regular expressions for dotted suffixes of module paths; the first that matches counts."""
    alpha_pattern: dict[str, float] = {}
    """PEFT's `alpha_pattern`."""
    scaling: Literal["standard", "rslora"] = "standard"
    """alpha / rank, or alpha / sqrt(rank)."""
    dora: bool = False
    start: str | None = None
    """Folder of the adapter to start from, relative to the project root."""
    module_count: int
    """Linear modules that `targets` match, predicted from the catalog."""
    trainable_parameters: int
    """Trained numbers, predicted from the catalog: rank x (in + out) of every adapter, with DoRA `out` more, and the
    modules in `full`."""


class MeshJob(_Frozen):
    """Sizes of the device mesh; their product is the number of processes."""

    replicate: int
    shard: int
    tensor: int = 1
    sequence: bool = False
    """Whether tensor groups also divide the activations between the blocks, along the sequence."""

    @property
    def data_parallel(self) -> int:
        """Processes, or tensor groups of them, that train on samples of their own."""
        return self.replicate * self.shard

    @property
    def processes(self) -> int:
        return self.data_parallel * self.tensor

    @property
    def words(self) -> str:
        """`replicate 2 × shard 4 × tensor 2 with sequence`, without the dimensions that are 1, but the first."""
        sizes = [f"replicate {self.replicate}"]
        sizes += [f"{name} {size}" for name, size in (("shard", self.shard), ("tensor", self.tensor)) if size > 1]
        return " × ".join(sizes) + (" with sequence" if self.sequence else "")


class BatchJob(_Frozen):
    """What an optimizer step and a micro-batch hold: samples, or tokens; the other two are None."""

    global_samples: int | None = None
    micro_samples: int | None = None
    global_tokens: int | None = None
    micro_tokens: int | None = None
    """Positions of the row that a micro-batch is; as many samples as fit."""
    accumulation: int


class OptimizerJob(_Frozen):
    learning_rate: float
    warmup_steps: int
    decay: Literal["constant", "linear", "cosine"]
    weight_decay: float
    max_grad_norm: float
    epochs: float | None
    """Length of the training, if given in epochs; exactly one of `epochs` and `steps` is set."""
    steps: int | None


class ContrastiveJob(_Frozen):
    """Contrastive voice similarity; see `higgsc.train.objective.contrastive`."""

    weight: float
    temperature: float


class PointJob(_Frozen):
    step: int
    factor: float


class CodebookPointJob(_Frozen):
    step: int
    factors: tuple[float, ...]


class ScheduleJob(_Frozen):
    """Factors on the weights of the loss by step, linear between the points; see `higgsc.train.rows.curriculum`."""

    text: tuple[PointJob, ...] = ()
    audio: tuple[PointJob, ...] = ()
    contrastive: tuple[PointJob, ...] = ()
    codebooks: tuple[CodebookPointJob, ...] = ()


class LengthJob(_Frozen):
    """How the longest sample that is trained on grows; see `higgsc.train.rows.curriculum`."""

    start_seconds: float
    max_seconds: float
    steps: int


class LossJob(_Frozen):
    """Weights of the objective; see `higgsc.train.objective.loss.objective`."""

    text: float
    audio: float
    codebooks: tuple[float, ...] = (1.0,) * 8
    """Of each codebook in the audio loss; only their ratios count."""
    contrastive: ContrastiveJob | None = None
    schedule: ScheduleJob | None = None


class TrackingJob(_Frozen):
    """Where the figures are shown, beside `metrics.jsonl`."""

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "higgsc"
    entity: str | None = None
    offline: bool = False


class SamplesJob(_Frozen):
    """Prompts that the model speaks at each checkpoint."""

    count: int
    prompts: Literal["held-out", "training"]
    temperature: float


BestMetric = Literal["validation/audio_loss", "validation/text_loss", "loss/audio", "loss/text", "loss/total"]
"""Figures of a checkpoint that can say which one is the best: the one with the lowest."""


class CheckpointJob(_Frozen):
    every_steps: int
    keep_last: int
    samples: SamplesJob | None = None
    keep_every: int | None = None
    """Those of which the step is a multiple of this are kept for good."""
    best: BestMetric = "validation/audio_loss"


class JobBase(_Frozen):
    job_schema: Literal["higgsc.job/v1"] = JOB_SCHEMA
    higgsc: str
    """Version of the compiler that wrote the file."""
    name: str
    """Name of the plan, as in the spec."""
    root: str
    """The project root, relative to the folder of this file."""
    run: str
    """The run's folder (receipts, logs, checkpoints), relative to the project root."""
    seed: int
    device: Literal["cpu", "cuda"]
    model: ModelRef


class SpeechJob(JobBase):
    """What the steps that read speech data have in common."""

    step: str
    sources: tuple[DataSource, ...]
    """Paths, or URLs that fsspec knows."""
    roots: tuple[str, ...] = ()
    """Folders inside which audio may lie, besides the project and the data file's own."""
    text: TextJob = TextJob()
    limits: DataLimits
    cache: str
    """Folder of codes by the audio that they were made from."""
    workers: int | None = None
    """Recordings that are worked on at a time; None is as many as there are cores."""


class EncodeJob(SpeechJob):
    """Encode each recording into the cache of codes, in shards that may run at the same time."""

    step: Literal["encode"] = "encode"
    shards: int


class PrepareJob(SpeechJob):
    """Read speech data, encode each recording that the cache has no codes of, write the store of codes."""

    step: Literal["prepare"] = "prepare"
    validation_fraction: float
    validation_by: Literal["sample", "speaker"] = "sample"
    store: str


class TrainJob(JobBase):
    """Train on the store: a LoRA adapter, with checkpoints in PEFT's format, or the whole model, with checkpoints in
    transformers' own."""

    step: Literal["train"] = "train"
    store: str
    precision: Literal["bf16", "fp32"]
    mesh: MeshJob
    batch: BatchJob
    lora: LoraJob | None
    """None trains every parameter of the language model."""
    quantize: Literal["fp8", "int8", "nf4"] | None = None
    """How the frozen matrices of the layers are rounded when they are loaded."""
    optimizer: OptimizerJob
    loss: LossJob
    checkpoint: CheckpointJob
    checkpoints: str
    """Folder of the checkpoints, relative to the project root."""
    log_every_steps: int
    tracking: TrackingJob = TrackingJob()
    curriculum: LengthJob | None = None
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    """Whether the decoder's layers are compiled."""


class MergeJob(JobBase):
    """Fold the selected checkpoint's adapter into the base; write a model for plain transformers."""

    step: Literal["merge"] = "merge"
    checkpoints: str
    select: Literal["best", "last"]
    best: BestMetric = "validation/audio_loss"
    """What the best checkpoint has the lowest value of."""
    dtype: Literal["bf16", "fp32"]
    quantize: Literal["int8", "fp8"] | None = None
    """How the merged model's linear weights are quantised afterwards."""
    merged: str


class SelectJob(_Frozen):
    """Which checkpoint of a training."""

    checkpoints: str
    """Folder of the checkpoints, relative to the project root."""
    select: Literal["best", "last"]
    best: BestMetric
    """What the best checkpoint has the lowest value of."""


class EvaluateJob(JobBase):
    """Compare base, adapter and merged model: losses on held-out samples, and the same prompts spoken by all."""

    step: Literal["evaluate"] = "evaluate"
    store: str
    merged: str | None
    """Folder of the merged model; None where nothing is merged: the whole model was trained, or a Whisper listens."""
    trained: SelectJob | None = None
    """The checkpoint of the whole model; or else that of the adapter, which the merged model was made from."""
    samples: int
    prompts: Literal["held-out", "training"]
    temperature: float
    language: str | None = None
    """Of the texts, such as `ar`."""
    recogniser: str | None = None
    """Hub id or folder of the Whisper that understands what was said; None measures no word errors."""
    similarity: str | None = None
    """Hub id or folder of the WavLM that compares voices; None compares none."""
    spec: str | None = None
    """The resolved spec, for the report."""
    evaluation: str


Job = Annotated[EncodeJob | PrepareJob | TrainJob | MergeJob | EvaluateJob, Field(discriminator="step")]


def load_job(path: Path) -> EncodeJob | PrepareJob | TrainJob | MergeJob | EvaluateJob:
    """Read a job file.

    Raises:
        StepError: The file is missing (66), or is not a job file of this version (65).
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise StepError(
            f"cannot read the job file: {error.strerror}", code=ExitCode.MISSING_INPUT, path=path
        ) from error
    try:
        job: EncodeJob | PrepareJob | TrainJob | MergeJob | EvaluateJob = TypeAdapter(Job).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StepError(
            f"not a job file of schema {JOB_SCHEMA}: {where}: {first['msg']}",
            path=path,
            help="job files are written by `higgsc build`; build the spec again",
        ) from error
    return job


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """Where a step runs: its job file, the project root, and which process of how many this one is."""

    job_path: Path
    root: Path
    rank: int
    world_size: int

    @classmethod
    def of(cls, job_path: Path, job: JobBase) -> StepContext:
        """Locate the project root; rank and world size come from torchrun's environment."""
        return cls(
            job_path=job_path,
            root=(job_path.resolve().parent / job.root).resolve(),
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def path(self, relative: str) -> Path:
        """A path of the job file as an absolute one."""
        return self.root / relative
