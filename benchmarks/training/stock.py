"""The peers: transformers' `Trainer` with PEFT on padded batches, as the public trainers of this model do it.

`documents` is the path of those: batches of 4 in random order, gradient checkpointing. `stock` is the best that the
same libraries can do: no checkpointing, samples of like length together. Both have their codes cached.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence as Listing
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
import torch._functorch.config
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from higgsc.data.delay import IGNORE
from higgsc.train.rows.sequence import AudioTokens, Sequence
from training.clock import now

TARGETS = [f"self_attn.{p}_proj" for p in "qkvo"] + [
    f"{m}.{p}_proj" for m in ("mlp", "audio_mlp") for p in ("gate", "up", "down")
]


def adapted(model: Any, rank: int) -> Any:
    """The model with PEFT's adapters, the same every time."""
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))


class _Rows(Dataset[dict[str, torch.Tensor]]):
    """Unpadded model inputs with labels in transformers' places: on the tokens themselves, its loss shifts."""

    def __init__(self, sequences: Listing[Sequence], tokens: AudioTokens) -> None:
        self._placeholders = (tokens.placeholder, tokens.delay)
        self._rows = [self._row(sequence) for sequence in sequences]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index]

    def _row(self, sequence: Sequence) -> dict[str, torch.Tensor]:
        labels = np.full(len(sequence.input_ids), IGNORE)
        labels[sequence.text_positions + 1] = sequence.text_labels
        by_place = np.full((len(sequence.input_ids), 8), IGNORE)
        by_place[sequence.audio_positions + 1] = sequence.audio_labels
        return {
            "input_ids": torch.from_numpy(sequence.input_ids),
            "labels": torch.from_numpy(labels),
            "audio_input_ids": torch.from_numpy(sequence.audio_rows),
            "audio_labels": torch.from_numpy(by_place[np.isin(sequence.input_ids, self._placeholders)]),
        }


class _Pad:
    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        def padded(name: str, value: int) -> torch.Tensor:
            return pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

        lengths = [len(row["input_ids"]) for row in rows]
        audio = [len(row["audio_input_ids"]) for row in rows]
        return {
            "input_ids": padded("input_ids", self._pad),
            "attention_mask": pad_sequence([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True),
            "labels": padded("labels", IGNORE),
            "audio_input_ids": padded("audio_input_ids", 0),
            "audio_input_ids_mask": pad_sequence([torch.ones(n, dtype=torch.bool) for n in audio], batch_first=True),
            "audio_labels": padded("audio_labels", IGNORE),
        }


class _InOrder(Trainer):
    """`Trainer` on samples in the order given, so that all ways of training see the same batches."""

    def _get_train_sampler(self, *_: object) -> Sampler[int]:
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)


class _Clock(TrainerCallback):
    def __init__(self, device: torch.device) -> None:
        self._device, self.starts, self.ends = device, [], []  # type: ignore[var-annotated]

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.starts.append(now(self._device))

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(now(self._device))


def train(
    model: Any,
    batches: Listing[Listing[Sequence]],
    *,
    learning_rate: float,
    checkpointing: bool,
    bf16: bool,
    folder: str,
    compiled: bool = False,
    ranks: int = 1,
    callbacks: Listing[TrainerCallback] = (),
) -> tuple[list[float], list[float]]:
    """Train one optimizer step a batch; the batches are of one size.

    Under torchrun, each process takes every `ranks`-th batch, and a step is one batch on each.

    Returns:
        Seconds of each step, from its begin to the begin of the next one, and its loss.
    """
    device = next(model.parameters()).device
    warnings.simplefilter("ignore", FutureWarning)
    clock = _Clock(device)
    trainer = _InOrder(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]),
            max_steps=len(batches) // ranks,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            gradient_checkpointing=checkpointing,
            torch_compile=compiled,
            bf16=bf16,
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            ddp_backend="gloo" if device.type == "cpu" and ranks > 1 else None,
            remove_unused_columns=False,
        ),
        train_dataset=_Rows([s for batch in batches for s in batch], AudioTokens.of(model.config)),
        data_collator=_Pad(model.config.pad_token_id),
        callbacks=[clock, *callbacks],
    )
    # Otherwise it divides all nine sums of the loss by the number of text labels.
    trainer.model_accepts_loss_kwargs = False
    # torch 2.13 dies when it writes what it compiled of these layers to its cache.
    with redirect_stdout(io.StringIO()), torch._functorch.config.patch(enable_autograd_cache=False):
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = [b - a for a, b in zip(clock.starts, [*clock.starts[1:], clock.ends[-1]], strict=True)]
    return seconds, losses
