"""Numbers that nobody means: legal, and a run wasted. Most are a lost exponent or a wrong unit."""

from __future__ import annotations

import math

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir
from higgsc.spec.training import Lora

LOWEST_RATE, HIGHEST_RATE = 1e-7, 0.1
"""Learning rates outside of which an adapter stands still, or runs away; `1e-4` is usual."""
HIGHEST_FULL_RATE = 2e-3
"""The same of the whole model; `1e-5` is usual."""
LOWEST_SCALE, HIGHEST_SCALE = 1e-2, 64.0
"""alpha / rank outside of which the adapter does nothing, or everything; 1 and 2 are usual."""
MOST_STEPS = 10_000_000
MOST_WARMUP = 100_000
HIGHEST_DECAY = 1.0
MOST_GPUS = 8
"""GPUs in one machine; more exist, and are rare."""
LARGE = 1e9
"""Parameters from which a training on a CPU takes months."""


def unlikely(ir: Ir, sink: Sink) -> Ir:
    """Warn about numbers, hardware and loss weights that are legal but hardly meant; refuse a loss of nothing."""
    training = ir.spec.training
    _rate(ir, sink, training.learning_rate)
    if ir.spec.lora is not None:
        _scale(ir, sink, ir.spec.lora)
    if training.weight_decay > HIGHEST_DECAY:
        message = f"a weight decay of {training.weight_decay:g} pulls what is trained to zero"
        _warn(ir, sink, "training.weight_decay", message, "`0.0` to `0.1` is usual")
    if training.steps is not None and training.steps > MOST_STEPS:
        _warn(ir, sink, "training.steps", f"{training.steps:,} optimizer steps never end", "some thousands are usual")
    if training.warmup_steps > MOST_WARMUP and training.steps is None:
        message = f"a warm-up of {training.warmup_steps:,} steps is longer than most trainings"
        _warn(ir, sink, "training.warmup_steps", message, "`warmup_steps: 100` is usual")
    _loss(ir, sink)
    _hardware(ir, sink)
    return ir


def _scale(ir: Ir, sink: Sink, lora: Lora) -> None:
    rslora = lora.scaling == "rslora"
    scale = lora.alpha / (math.sqrt(lora.rank) if rslora else lora.rank)
    if not LOWEST_SCALE <= scale <= HIGHEST_SCALE:
        message = (
            f"alpha {lora.alpha:g} / {'√rank' if rslora else 'rank'} {lora.rank} scales the adapter by {scale:.3g}"
        )
        usual = (
            "`alpha: 16` is usual with rslora"
            if rslora
            else f"once or twice the rank is usual: `alpha: {2 * lora.rank}`"
        )
        _warn(ir, sink, "lora.alpha", message, usual)


def _warn(ir: Ir, sink: Sink, at: str, message: str, help_: str) -> None:
    sink.add(Diagnostic("HC363", message, ir.label(at), help=help_))


def _rate(ir: Ir, sink: Sink, rate: float) -> None:
    whole = ir.spec.lora is None
    highest, usual = (HIGHEST_FULL_RATE, "1e-5") if whole else (HIGHEST_RATE, "1e-4")
    if LOWEST_RATE <= rate < highest:
        return
    far = "far above" if rate >= highest else "far below"
    minus = "; a minus may be missing in the exponent" if rate >= HIGHEST_RATE else ""
    message = f"a learning rate of {rate:g} is {far} what {'a whole model' if whole else 'LoRA'} is trained with"
    sink.add(Diagnostic("HC324", message, ir.label("training.learning_rate"), help=f"`{usual}` is usual{minus}"))


def _loss(ir: Ir, sink: Sink) -> None:
    loss = ir.spec.loss
    if loss.audio > 0:
        return
    if loss.text == 0 and (loss.contrastive is None or loss.contrastive.weight == 0):
        message, help_ = (
            "both weights of the loss are 0: there is nothing to learn",
            "write `loss: {text: 1, audio: 1}`",
        )
        sink.add(Diagnostic("HC361", message, ir.label("loss.audio"), (ir.label("loss.text"),), help=help_))
    else:
        message = "the audio loss has no weight: the voice is not learned"
        sink.add(Diagnostic("HC362", message, ir.label("loss.audio"), help="leave it out, or write `audio: 1`"))


def _hardware(ir: Ir, sink: Sink) -> None:
    shape = ir.spec.hardware
    if shape.device == "cpu":
        parameters = ir.shape.parameter_count()
        if parameters > LARGE:
            message = f"a model of {parameters / 1e9:.1f} billion parameters is trained on a CPU"
            help_ = "name a GPU, `1xH100`; to try things out, `base: builtin:tiny` with `audio_tokenizer: builtin:tiny`"
            sink.add(Diagnostic("HC304", message, ir.label("hardware"), help=help_))
        return
    if shape.gpus_per_node > MOST_GPUS:
        at = "hardware.gpus_per_node" if ir.given("hardware.gpus_per_node") else "hardware"
        nodes, rest = divmod(shape.world_size, MOST_GPUS)
        gpu = f"x{shape.gpu}" if shape.gpu is not None else ""
        ways = f"`{nodes}x{MOST_GPUS}{gpu}` is {nodes} machines with {MOST_GPUS} GPUs each"
        help_ = "the number of machines goes in front: `2x8`" if rest else ways
        sink.add(Diagnostic("HC303", f"one machine with {shape.gpus_per_node} GPUs is rare", ir.label(at), help=help_))
    cpus = ir.spec.site.cpus_per_node
    if cpus is not None and cpus < shape.gpus_per_node:
        message = f"{cpus} CPU core{'s' if cpus > 1 else ''} for {shape.gpus_per_node} GPUs: each needs one of its own"
        ways = f"`cpus_per_node: {8 * shape.gpus_per_node}` is eight for each"
        gpus = Label(ir.label("hardware").span, f"{shape.gpus_per_node} GPUs in each machine")
        sink.add(Diagnostic("HC363", message, ir.label("site.cpus_per_node"), (gpus,), help=ways))
