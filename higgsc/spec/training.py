"""What is trained, how, what is kept, and what is merged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from higgsc.spec.base import FilePath, Language, SpecModel

BestMetric = Literal["validation/audio_loss", "validation/text_loss", "loss/audio", "loss/text", "loss/total"]
Preset = Literal["comprehensive", "audio_focused", "attention_only"]
Head = Literal["audio", "text"]
Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0)]


class Lora(SpecModel):
    """Low-rank adapters on linear layers of the frozen base (Hu et al., 2021)."""

    targets: Preset | tuple[str, ...] = "comprehensive"
    """A preset, or suffixes of module paths; `*` stands for any characters but a dot.

    `comprehensive`: attention and both FFN paths. `audio_focused`: the audio FFN, q and v.
    `attention_only`: q, k, v, o."""
    heads: tuple[Head, ...] = ()
    """Output heads that get an adapter as well."""
    full_heads: tuple[Head, ...] = ()
    """Output heads that are trained whole, in fp32, instead of by an adapter (PEFT's `modules_to_save`).

    Of the released model, the audio head has 25 million parameters, the text head 394 million."""
    rank: Rank = 64
    """Inner dimension of the pair A, B that is added to a linear layer."""
    alpha: Alpha = 128
    """The update is scaled by alpha / rank; see `scaling`."""
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    """Ranks of their own for some modules, which are written as in `targets`; the first pattern that matches counts."""
    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)
    """Alphas of their own for some modules, likewise."""
    scaling: Literal["standard", "rslora"] = "standard"
    """`standard` scales the update by alpha / rank, `rslora` by alpha / √rank (Kalajdzievski, 2023).

    With `rslora` large ranks learn as fast as small ones; alpha is then chosen smaller, some 8 to 32."""
    dora: bool = False
    """Also train the length of every row of the adapted weights (DoRA; Liu et al., 2024).

    Often a little better at small ranks; costs memory and speed."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input; above 0 it costs memory and speed."""
    start: FilePath | None = None
    """A folder in PEFT's format, such as `runs/arabic/checkpoints/step-500/adapter`, whose weights the adapter starts
    from; it has to have the same modules, ranks and scaling as this one. Fresh if not given."""


class GlobalBatch(SpecModel):
    """What one optimizer step sees."""

    samples: int | None = Field(default=None, ge=1)
    """Samples in one optimizer step, over all GPUs; give either `samples` or `tokens`."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens (text and audio rows) in one optimizer step, over all GPUs; give either `samples` or `tokens`.

    Fastest: every row has `micro_batch.tokens` positions, and is full. Samples with the same reference and system
    prompt share them in a row. A step then has now more samples, now fewer."""


class MicroBatch(SpecModel):
    """What one GPU processes at a time, in one row without padding; counted as the global batch is."""

    samples: int | None = Field(default=None, ge=1)
    """Samples in a row; 4 if not given."""
    tokens: int | None = Field(default=None, ge=64)
    """Tokens in a row, into which as many samples are put as fit; if not given, 16,384, or the next number below that
    divides. No sample may be longer. Rows of other lengths hold other samples, so a training goes on with the same."""


class Curriculum(SpecModel):
    """Short samples first. What is longer than the limit is passed over until its turn comes again; the limit grows
    linearly to `data.limits.max_seconds`."""

    start_seconds: float = Field(gt=0)
    """Longest reference or target recording of the first step."""
    steps: int = Field(ge=1)
    """Optimizer steps until the longest samples are trained on."""


class Training(SpecModel):
    """Length, batch and learning rate of the training (AdamW, betas 0.9 and 0.999)."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training samples; give either `epochs` or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; give either `epochs` or `steps`."""
    global_batch: GlobalBatch
    """What one optimizer step sees."""
    micro_batch: MicroBatch = MicroBatch()
    """What one GPU processes at a time. Accumulation is derived from the two."""
    learning_rate: float = Field(gt=0, le=1)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises from 0 to its peak."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up; `linear` and `cosine` end at 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW, on all that is trained."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this L2 norm."""
    curriculum: Curriculum | None = None
    """Short samples first; all lengths from the start if not given."""
    activation_checkpointing: Literal["none", "selective", "full"] | None = None
    """What a layer keeps for the backward pass: everything, what is dear to compute, or its input alone. If not given,
    the most that the GPU has the memory for; everything, where `hardware` names no GPU.

    What is not kept is computed again. `selective` costs little time; `full` costs a second forward pass, and leaves
    the memory of one layer. The gradients are the same to the bit."""
    compile: bool = False
    """Compile the decoder's layers (`torch.compile`): the first step takes minutes, every other one less. Needs a C++
    compiler, and Triton on GPUs. Results differ by rounding."""
    log_every_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of metrics."""


class Checkpoint(SpecModel):
    """How often what is trained is saved and validated, and what is kept."""

    every_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two checkpoints; one more is written at the end, and when the training is asked to stop.

    A training that is killed goes on from the newest whole checkpoint."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept, beside the best one."""
    samples: int = Field(default=0, ge=0, le=16)
    """Prompts that the model speaks at each checkpoint, and once before the training: `samples/step-N/*.wav` and the
    trackers. Which prompts and how, `evaluate` says."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of which the step is a multiple of this are kept for good; a multiple of `every_steps`."""
    best: BestMetric = "validation/audio_loss"
    """What the best checkpoint has the lowest value of: it is always kept, and `merge: {select: best}` takes it.

    Of losses in training, the mean since the checkpoint before counts. Where nothing is held out, the loss in training
    stands in for the one in validation."""


class Merge(SpecModel):
    """The model that is deployed: base plus adapter in one."""

    select: Literal["best", "last"] = "best"
    """The checkpoint to merge: the best by `checkpoint.best`, or the newest."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Number format of the merged model."""
    quantize: Literal["int8", "fp8"] | None = None
    """What the merged model's linear weights are quantised to, by torchao (an extra to install, `higgsc[quantize]`, to
    make such a model and to load it). Heads, embeddings and norms stay in `dtype`."""


class Evaluate(SpecModel):
    """What is measured at the end, of the base, of the adapter on it and of the merged model: the loss on held-out
    samples, and prompts that each speaks with the same seeds. `evaluation/evaluation.html` shows it, with players."""

    samples: int = Field(default=8, ge=0)
    """Prompts that each of the models speaks; 0 only measures the loss."""
    prompts: Literal["held-out", "training"] = "held-out"
    """Which prompts: samples that the model never saw, or samples that it was trained on, to hear what it retained."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature; 0 takes the likeliest code every time."""
    language: Language | None = None
    """Language of the texts, such as `ar`: the recogniser need not guess it, and the report is set in it."""
    recogniser: FilePath | None = None
    """A Whisper, such as `openai/whisper-large-v3`, whose transcripts are compared with the texts: word and character
    error rates. A hub id or a local folder; needs the package `jiwer` where the step runs."""
    similarity: FilePath | None = None
    """A WavLM for speaker verification, such as `microsoft/wavlm-base-plus-sv`, that compares each voice with the
    reference's. A hub id or a local folder."""
