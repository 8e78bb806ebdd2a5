"""How the adapter is trained, kept and merged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from higgsc.spec.base import SpecModel

BestMetric = Literal["validation/audio_loss", "validation/text_loss", "loss/audio", "loss/text", "loss/total"]
Preset = Literal["comprehensive", "audio_focused", "attention_only"]


class Lora(SpecModel):
    """Low-rank adapters on linear layers of the frozen base (Hu et al., 2021)."""

    targets: Preset | tuple[str, ...] = "comprehensive"
    """A preset, or suffixes of module paths; `*` stands for any characters but a dot.

    `comprehensive`: attention and both FFN paths. `audio_focused`: the audio FFN, q and v.
    `attention_only`: q, k, v, o."""
    heads: tuple[Literal["audio", "text"], ...] = ()
    """Output heads that get an adapter as well."""
    rank: int = Field(default=64, ge=1, le=1024)
    """Inner dimension of the pair A, B that is added to a linear layer."""
    alpha: float = Field(default=128, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input; above 0 it costs memory and speed."""


class GlobalBatch(SpecModel):
    """What one optimizer step sees."""

    samples: int = Field(ge=1)
    """Samples in one optimizer step, over all GPUs."""


class MicroBatch(SpecModel):
    """What one GPU processes at a time."""

    samples: int = Field(default=4, ge=1)
    """Samples that one GPU processes at a time, packed into one row without padding."""


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
    """Decoupled weight decay of AdamW, on the adapter."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this L2 norm."""
    log_every_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of metrics."""


class Loss(SpecModel):
    """Weights in `total = text * text loss + audio * audio loss`.

    The audio loss is the mean cross-entropy over all labelled codes, ln 1026 = 6.93 for a uniform guess."""

    text: float = Field(default=1.0, ge=0)
    """Weight of the text loss: the target's audio begin, audio end and end-of-turn tokens."""
    audio: float = Field(default=1.0, ge=0)
    """Weight of the audio loss."""


class Checkpoint(SpecModel):
    """How often the adapter is saved and validated, and what is kept."""

    every_steps: int = Field(default=500, ge=1)
    """Optimizer steps between two checkpoints; one more is written at the end, and when the training is asked to stop.

    A training that is killed goes on from the newest whole checkpoint."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept, beside the best one."""
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


class Evaluate(SpecModel):
    """What is measured at the end: the loss on held-out samples, and prompts spoken by the merged model."""

    samples: int = Field(default=8, ge=0)
    """Prompts that the merged model speaks; 0 only measures the loss."""
    prompts: Literal["held-out", "training"] = "held-out"
    """Which prompts: samples that the model never saw, or samples that it was trained on, to hear what it retained."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Sampling temperature; 0 takes the likeliest code every time."""
