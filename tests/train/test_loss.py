"""The loss against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch

from higgsc.contract.jobs import LossJob
from higgsc.data.delay import apply_delay, delayed_labels
from higgsc.train.decoder.routes import Labelled, Routes
from higgsc.train.objective.loss import LossModule, LossSums, objective
from higgsc.train.rows import sequence as sequence_module
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import MakeSample


def transformers_losses(model: Any, sample: Any) -> tuple[list[float], float, float]:
    """Per-codebook audio losses, text loss and total of transformers' own `forward`, which shifts by itself.

    The labels lie where their tokens are. They are built here from the sample, not taken from `build_sequence`.
    """
    reference = apply_delay(sample.reference, bos=1024, eos=1025)
    target = apply_delay(sample.target, bos=1024, eos=1025)

    def placeholders(rows: Any) -> list[int]:
        return [51] * (len(rows) - 7) + [53] * 7

    before = [*sample.prefix, *placeholders(reference), *sample.middle]
    ids = torch.tensor([*before, *placeholders(target), *sample.suffix])[None]
    labels = torch.full_like(ids, -100)
    labels[0, len(before) - 1] = ids[0, len(before) - 1]
    labels[0, -2:] = ids[0, -2:]
    audio_labels = np.concatenate((np.full_like(reference, -100), delayed_labels(sample.target, eos=1025, ignore=-100)))
    recorded: list[float] = []
    loss_function: Callable[..., torch.Tensor] = model.loss_function

    def recording(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = loss_function(*arguments, **options)
        recorded.append(loss.item())
        return loss

    model.loss_function = recording
    rows = torch.from_numpy(np.concatenate((reference, target)))[None]
    total = model(
        input_ids=ids,
        audio_input_ids=rows,
        audio_input_ids_mask=torch.ones(rows.shape[:2], dtype=torch.bool),
        audio_labels=torch.from_numpy(audio_labels)[None],
        labels=labels,
        use_cache=False,
    ).loss
    model.loss_function = loss_function
    assert len(recorded) == 9
    return recorded[:8], recorded[8], total.item()


@torch.no_grad()
def test_losses_are_those_of_transformers_forward(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    sample = make_sample(0, reference=6, target=5)
    audio, text, total = transformers_losses(model, sample)
    sums = LossModule(model)(pack([build_sequence(sample, tokens)]))
    # Five codes and one end-of-stream per codebook; three text tokens.
    torch.testing.assert_close(sums.audio / 6, torch.tensor(audio), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sums.text / 3, torch.tensor(text), rtol=1e-6, atol=1e-6)
    ours = objective(sums, LossJob(text=1.0, audio=8.0), audio_labels=48, text_labels=3)
    torch.testing.assert_close(ours, torch.tensor(total), rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, -2])
def test_a_wrong_shift_is_noticed(
    model: Any, tokens: AudioTokens, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    monkeypatch.setattr(sequence_module, "predicting", lambda positions: positions + shift)
    sample = make_sample(0, reference=6, target=5)
    audio, _, _ = transformers_losses(model, sample)
    sums = LossModule(model)(pack([build_sequence(sample, tokens)]))
    assert (sums.audio / 6 - torch.tensor(audio)).abs().max() > 1e-3


def test_heads_run_at_labelled_positions_only(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    seen: dict[str, int] = {}
    for name in ("audio_lm_head", "text_lm_head"):
        head = getattr(model, name)
        head.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0].shape[0]}))
    batch = pack([build_sequence(make_sample(seed, target=4), tokens) for seed in range(2)])
    LossModule(model)(batch)
    # Rows 1 to 4 + 8 of each target, and three text tokens each.
    assert seen == {"audio_lm_head": 2 * 12, "text_lm_head": 2 * 3}


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary(
    model: Any, tokens: AudioTokens, make_sample: MakeSample
) -> None:
    for head in (model.audio_lm_head, model.text_lm_head):
        torch.nn.init.zeros_(head.weight)
    sums = LossModule(model)(pack([build_sequence(make_sample(0, target=4), tokens)]))
    both = [
        objective(sums, weights, audio_labels=40, text_labels=3).item()
        for weights in (LossJob(text=0, audio=1), LossJob(text=1, audio=0))
    ]
    assert both == pytest.approx([np.log(1026), np.log(64)], rel=1e-6)


NONE = np.zeros(0, dtype=np.int64)


def unlabelled(batch: PackedBatch) -> PackedBatch:
    """The row without its labels."""
    routes = replace(batch.routes, labelled=Labelled.of(batch.routes.is_audio[:, 0].numpy(), NONE, NONE))
    return replace(
        batch,
        routes=routes,
        audio_positions=batch.audio_positions[:0],
        audio_labels=batch.audio_labels[:0],
        text_positions=batch.text_positions[:0],
        text_labels=batch.text_labels[:0],
    )


def test_no_labels_cost_nothing(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    sums = LossModule(model)(unlabelled(pack([build_sequence(make_sample(0), tokens)])))
    loss = objective(sums, LossJob(text=1, audio=1), audio_labels=0, text_labels=0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_shares_of_a_global_batch_add_up() -> None:
    whole = LossSums(audio=torch.arange(8.0), text=torch.tensor(6.0))
    half = LossSums(audio=whole.audio / 2, text=whole.text / 2)
    counts = {"audio_labels": 80, "text_labels": 6}
    weights = LossJob(text=0.5, audio=2.0)
    assert 2 * objective(half, weights, **counts) == objective(whole, weights, **counts)
    assert objective(whole, weights, **counts) == pytest.approx(2.0 * 28 / 80 + 0.5 * 6 / 6)


def test_codebook_weights_are_ratios() -> None:
    sums = LossSums(audio=torch.arange(1.0, 9.0), text=torch.tensor(6.0))
    counts = {"audio_labels": 80, "text_labels": 6}

    def loss(*codebooks: float) -> float:
        return objective(sums, LossJob(text=0, audio=2, codebooks=codebooks), **counts).item()

    assert loss(*[1.0] * 8) == loss(*[3.0] * 8) == pytest.approx(2 * 36 / 80)
    assert loss(0, 0, 5, 0, 0, 0, 0, 0) == pytest.approx(2 * 3 / 10)  # ten labels in each codebook
    assert loss(3, 1, 0, 0, 0, 0, 0, 0) == pytest.approx(2 * (0.75 * 1 + 0.25 * 2) / 10)


def test_only_weighted_codebooks_teach(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    batch = pack([build_sequence(make_sample(0), tokens)])
    weights = LossJob(text=0, audio=1, codebooks=(0, 0, 1, 0, 0, 0, 0, 0))
    objective(LossModule(model)(batch), weights, audio_labels=40, text_labels=3).backward()
    gradient = model.audio_lm_head.weight.grad.reshape(8, 1026, -1)
    assert [bool(part.any()) for part in gradient] == [k == 2 for k in range(8)]
    assert model.text_lm_head.weight.grad is None or not model.text_lm_head.weight.grad.any()


@pytest.mark.parametrize("audio", [True, False])
def test_a_process_without_labels_leaves_the_others_gradients(
    model: Any, tokens: AudioTokens, make_sample: MakeSample, audio: bool
) -> None:
    """It has a gradient for every adapter, so that an all-reduce finds what it needs; all of them zero.

    Without audio, the row is text alone, and the audio network has no position to work on.
    """
    targets = ["q_proj", "mlp.down_proj", "audio_mlp.down_proj", "audio_lm_head", "text_lm_head"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    batch = pack([build_sequence(make_sample(0), tokens)])
    none = unlabelled(batch)
    if not audio:
        none = replace(
            none,
            input_ids=none.input_ids[:, :6],
            position_ids=none.position_ids[:, :6],
            audio_input_ids=none.audio_input_ids[:, :0],
            routes=Routes.of(np.zeros(6, dtype=np.bool_), [6], audio_labels=NONE, text_labels=NONE),
        )
    counts = {"audio_labels": 40, "text_labels": 3}
    loss = objective(LossModule(adapted)(none), LossJob(text=1, audio=1), **counts)
    loss.backward()
    assert loss.item() == 0
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
