"""This project's way: samples packed into one row, its own decoder, heads at labelled positions only.

`ABLATION` takes that apart: from transformers' own layers and loss on a packed row, one technique is added at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from higgsc.contract.jobs import LossJob, OptimizerJob
from higgsc.deploy.probe import hidden_states
from higgsc.train.decoder import layer
from higgsc.train.decoder.attention import announce
from higgsc.train.decoder.routes import Row
from higgsc.train.objective import loss as loss_module
from higgsc.train.objective.loss import LossModule, LossSums, objective
from higgsc.train.optimizer import adamw
from higgsc.train.rows.row import PackedBatch
from higgsc.train.rows.sequence import Sequence
from training.clock import now

WEIGHTS = LossJob(text=1, audio=8)
"""As transformers weighs them: the sum of eight codebooks' means, and the text's mean."""
MakeRow = Callable[[Listing[Sequence]], PackedBatch]


def train(
    model: Any,
    batches: Listing[Listing[Sequence]],
    make_row: MakeRow,
    *,
    learning_rate: float,
    bf16: bool,
    prepare: Callable[[Any], None] | None = None,
    without: frozenset[str] = frozenset(),
) -> tuple[list[float], list[float]]:
    """Train one optimizer step a batch; seconds and loss of each step.

    Args:
        model: With adapters.
        batches: Samples of each step.
        make_row: Packs them.
        learning_rate: Of AdamW.
        bf16: Whether to compute in bfloat16.
        prepare: Called with the decoder before the training, to compile its layers.
        without: Techniques of `ABLATION` that are left out.
    """
    device = next(model.parameters()).device
    announce(device, torch.bfloat16 if bf16 else torch.float32, shared=True)
    module = LossModule(model).train()
    if prepare is not None:
        prepare(module.causal.model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    job = OptimizerJob(
        learning_rate=learning_rate, warmup_steps=0, decay="constant", weight_decay=0, max_grad_norm=1,
        epochs=None, steps=len(batches),
    )  # fmt: skip
    optimizer = adamw(parameters, job)
    seconds, losses = [], []
    with _left_out(without):
        for batch in batches:
            start = now(device)
            row = make_row(batch)
            labels = {"audio_labels": int(row.audio_labels.ge(0).sum()), "text_labels": row.text_labels.numel()}
            row = row.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                sums = module(row)
            loss = objective(sums, WEIGHTS, **labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            seconds.append(now(device) - start)
    return seconds, torch.stack(losses).tolist()


def _stock_losses(self: LossModule, batch: PackedBatch, voices: object = None) -> LossSums:
    """transformers' layers, and both heads at every position."""
    hidden = hidden_states(self.causal.model, batch)
    places = batch.input_ids.new_full((batch.tokens, 8), -100)
    places[batch.audio_positions] = batch.audio_labels
    words = batch.input_ids.new_full((batch.tokens,), -100)
    words[batch.text_positions] = batch.text_labels
    audio_logits = self.causal.audio_lm_head(hidden).float().unflatten(1, (8, -1))
    audio = [F.cross_entropy(audio_logits[:, k], places[:, k], reduction="sum") for k in range(8)]
    text = F.cross_entropy(self.causal.text_lm_head(hidden).float(), words, reduction="sum")
    return LossSums(audio=torch.stack(audio), text=text)


def _by_transformers(self: LossModule, batch: PackedBatch, voices: object = None) -> LossSums:
    """transformers' layers."""

    def decode(decoder: Any, *_: Any, **__: Any) -> Tensor:
        return hidden_states(decoder, batch).index_select(0, batch.routes.labelled.places)

    with patch.object(loss_module, "decode", decode):
        return _forward(self, batch)


_forward = LossModule.forward


def _dense(query: Tensor, key: Tensor, value: Tensor, row: Row) -> Tensor:
    """Attention with a mask over the whole row."""
    ends, places = row.routes.starts[1:], torch.arange(len(query), device=query.device)
    segment = torch.searchsorted(ends, places, right=True)
    mask = (segment[:, None] == segment) & (places[:, None] >= places)
    groups = query.shape[1] // key.shape[1]
    heads = (
        t.repeat_interleave(n, dim=1).transpose(0, 1)[None] for t, n in ((query, 1), (key, groups), (value, groups))
    )
    return F.scaled_dot_product_attention(*heads, attn_mask=mask)[0].transpose(0, 1)


def _modules(x: Tensor, *modules: Any, in_place: bool = True) -> tuple[Tensor, ...]:
    return tuple(module(x) for module in modules)


def _plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


ABLATION: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "heads at labelled positions": ((LossModule, "forward", _stock_losses),),
    "dispatch once a batch": ((LossModule, "forward", _by_transformers),),
    "attention per segment": ((layer, "attend", _dense),),
    "adapters stacked": ((layer, "project", _modules), (loss_module, "project", _modules)),
    "loss without copies": ((loss_module, "cross_entropy", _plain_loss),),
}
"""Techniques in the order in which they are added to a packed row, and what is in their place without them."""


@contextmanager
def _left_out(names: frozenset[str]) -> Iterator[None]:
    with ExitStack() as stack:
        # The first ones last: they stand for what comes after them too.
        for name in reversed(ABLATION):
            for target, attribute, plain in ABLATION[name] if name in names else ():
                stack.enter_context(patch.object(target, attribute, plain))
        yield
