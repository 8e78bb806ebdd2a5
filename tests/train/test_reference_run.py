"""A whole run against one that none of our code took part in, but for reading the store.

The other run is written out here by hand: transformers' stock `forward` on padded batches, with its own shift, its own
dispatch and its own loss; PEFT's adapters; the delay by transformers' own processor; torch's AdamW.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import HiggsAudioV2ForConditionalGeneration
from transformers.models.higgs_audio_v2.processing_higgs_audio_v2 import HiggsAudioV2Processor

from higgsc.contract.jobs import BatchJob, LossJob
from higgsc.data.store import Store, StoredSample
from higgsc.train.model.builtin import tiny_path

from .conftest import Project

STEPS, WARMUP, PEAK, DECAY, CLIP = 100, 10, 5e-3, 0.01, 1.0
BOS, EOS, IGNORE = 1024, 1025, -100


def delayed(codes: np.ndarray) -> torch.Tensor:
    """Rows `[T + 9, 8]` of a clip, by transformers' processor."""
    framed = torch.from_numpy(codes.astype(np.int64)).T[None]
    framed = torch.nn.functional.pad(torch.nn.functional.pad(framed, (1, 0), value=BOS), (0, 1), value=EOS)
    marks = SimpleNamespace(audio_stream_bos_id=BOS, audio_stream_eos_id=EOS)
    rows: torch.Tensor = HiggsAudioV2Processor.build_delay_pattern(marks, framed)[0].T
    return rows


def labelled(sample: StoredSample, ids: Any) -> dict[str, torch.Tensor]:
    """A sample with its labels where their tokens are: `forward` shifts by itself."""
    reference, target = delayed(sample.reference), delayed(sample.target)

    def clip(rows: torch.Tensor) -> list[int]:
        return [ids.audio_token_id] * (len(rows) - 7) + [ids.audio_delay_token_id] * 7

    before = [*sample.prefix, *clip(reference), *sample.middle]
    text = torch.tensor([*before, *clip(target), *sample.suffix])
    labels = torch.full_like(text, IGNORE)
    labels[len(before) - 1] = text[len(before) - 1]  # <|audio_out_bos|>
    labels[-2:] = text[-2:]  # <|audio_eos|><|eot_id|>
    audio_labels = torch.full((len(reference) + len(target), 8), IGNORE)
    for k in range(8):  # the frames, and one end of the stream
        first = len(reference) + 1 + k
        audio_labels[first : first + len(sample.target) + 1, k] = target[1 + k : 2 + k + len(sample.target), k]
    return {"ids": text, "labels": labels, "rows": torch.cat((reference, target)), "audio_labels": audio_labels}


def padded(parts: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)


def reference_losses(store: Store, *, seed: int, batch: int, targets: list[str], rank: int, alpha: int) -> list[float]:
    """The loss of every step: transformers' sum of the eight codebooks' means, plus the text's mean."""
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        tiny_path("model"), use_text_head=True, dtype=torch.float32
    )
    config = model.config
    torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=(2,)).generate_state(1, np.uint64)[0]))
    lora = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)
    model = peft.get_peft_model(model, lora).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK, weight_decay=DECAY)

    epochs = -(-STEPS * batch // len(store.train))
    keys = [
        np.random.Philox(np.random.SeedSequence(seed, spawn_key=(1, e))).random_raw(len(store.train))
        for e in range(epochs)
    ]
    order = store.train[np.concatenate([np.argsort(k, kind="stable") for k in keys])]
    losses = []
    for step in range(STEPS):
        samples = [labelled(store.sample(int(i)), config) for i in order[step * batch : (step + 1) * batch]]
        columns = {name: [sample[name] for sample in samples] for name in samples[0]}
        loss = model(
            input_ids=padded(columns["ids"], config.pad_token_id),
            attention_mask=padded([torch.ones_like(row) for row in columns["ids"]], 0),
            audio_input_ids=padded(columns["rows"], EOS),
            audio_input_ids_mask=padded([torch.ones(len(row)) for row in columns["rows"]], 0).bool(),
            labels=padded(columns["labels"], IGNORE),
            audio_labels=padded(columns["audio_labels"], IGNORE),
            use_cache=False,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        rate = PEAK * min(1.0, (step + 1) / WARMUP)
        if step >= WARMUP:
            rate *= 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_the_losses_are_those_of_a_loop_around_transformers_forward(project: Project) -> None:
    """Step by step to 1e-4, over a hundred steps, in which the loss falls far below a uniform guess's."""
    job = project.job(
        # transformers adds the codebooks' means up, we take the mean of them
        loss=LossJob(text=1.0, audio=8.0),
        batch=BatchJob(global_samples=4, micro_samples=2, accumulation=2),
        optimizer=project.job().optimizer.model_copy(
            update={"steps": STEPS, "warmup_steps": WARMUP, "learning_rate": PEAK, "weight_decay": DECAY}
        ),
    )
    expected = reference_losses(
        Store.open(project.root / "store"),
        seed=job.seed,
        batch=4,
        targets=list(job.lora.targets),
        rank=job.lora.rank,
        alpha=int(job.lora.alpha),
    )
    project.train(job)
    losses = [line["loss/total"] for line in project.metrics()]
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < 0.5 * losses[0]
