"""Contrastive voice similarity: the formula, what it teaches, and several processes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from higgsc.contract.jobs import BatchJob, ContrastiveJob, LossJob, MeshJob
from higgsc.data.store import StoredSample
from higgsc.train.objective.contrastive import Voices, count_anchors, info_nce, pooled, voices
from higgsc.train.objective.loss import LossModule, objective
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import MakeSample, Project
from .ranks import train

SPEAKERS = 24
ONLY = LossJob(text=0, audio=0, contrastive=ContrastiveJob(weight=1.0, temperature=0.1))


def by_hand(references: Tensor, targets: Tensor, speakers: list[int], temperature: float) -> float:
    total = 0.0
    for anchors, candidates in ((targets, references), (references, targets)):
        for i, anchor in enumerate(anchors):
            own = math.exp(float(anchor @ candidates[i]) / temperature)
            others = [math.exp(float(anchor @ c) / temperature) for c, s in zip(candidates, speakers, strict=True)
                      if s != speakers[i]]  # fmt: skip
            total -= math.log(own / (own + sum(others))) / 2
    return total


def test_the_formula() -> None:
    torch.manual_seed(0)
    references, targets = (torch.nn.functional.normalize(torch.randn(5, 16), dim=-1) for _ in range(2))
    for speakers in ([0, 1, 2, 3, 4], [0, 0, 1, 1, 2]):
        found = info_nce(references, targets, torch.tensor(speakers), temperature=0.2)
        assert found.item() == pytest.approx(by_hand(references, targets, speakers, 0.2), rel=1e-5)
    assert info_nce(references, targets, torch.zeros(5, dtype=torch.int64), temperature=0.2).item() == 0
    assert count_anchors(np.array([[0, 0, 0], [0, 1, 0], [2, 2, 2]])) == 3


def test_clips_are_found_in_the_row(model: Any, make_sample: MakeSample, tokens: AudioTokens) -> None:
    """The mean over a clip's rows, in a packed row as in a row of its own."""
    samples = [make_sample(seed, reference=3 + seed, target=5 - seed) for seed in range(3)]
    batch = pack([build_sequence(sample, tokens) for sample in samples])
    where = voices(samples, np.array([4, 7, 4]))
    audio = torch.isin(batch.input_ids[0], torch.tensor([tokens.placeholder, tokens.delay]))
    assert where.positions.sort().values.tolist() == audio.nonzero()[:, 0].tolist()
    hidden = torch.randn(batch.tokens, 8)
    references, targets = pooled(hidden, where)
    start = len(samples[0].prefix)
    expected = torch.nn.functional.normalize(hidden[start : start + 3 + 9].mean(dim=0), dim=0)
    torch.testing.assert_close(references[0], expected)
    end = batch.tokens - len(samples[2].suffix)
    expected = torch.nn.functional.normalize(hidden[end - (3 + 9) : end].mean(dim=0), dim=0)
    torch.testing.assert_close(targets[2], expected)
    assert where.speakers.tolist() == [4, 7, 4]


class Toy:
    """Many speakers, each with codes of a range of its own, most of them noise; an adapter on the tiny model."""

    def __init__(self, model: Any, tokens: AudioTokens) -> None:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "audio_mlp.down_proj"])
        self.model, self.tokens = peft.get_peft_model(model, config), tokens
        self.module = LossModule(self.model, lambda h, w: info_nce(*pooled(h, w), w.speakers, temperature=0.1))
        self.adapter = [p for p in self.model.parameters() if p.requires_grad]
        self.random = np.random.default_rng(0)

    def samples(self) -> list[StoredSample]:
        def codes(speaker: int) -> Any:
            own = self.random.integers(40 * speaker, 40 * speaker + 40, (8, 8))
            noise = self.random.integers(0, 1024, (8, 8))
            return np.where(self.random.random((8, 8)) < 0.3, own, noise).astype(np.uint16)

        text = partial(self.random.integers, 2, 50)
        return [
            StoredSample(id="", speaker="", prefix=np.r_[text(6), 52], middle=np.r_[54, 50, text(7), 52],
                         suffix=np.array([54, 50]), reference=codes(speaker), target=codes(speaker))
            for speaker in range(SPEAKERS)
        ]  # fmt: skip

    def loss(self) -> Tensor:
        samples = self.samples()
        batch = pack([build_sequence(sample, self.tokens) for sample in samples])
        sums = self.module(batch, voices(samples, np.arange(SPEAKERS)))
        return objective(sums, ONLY, audio_labels=1, text_labels=1, anchors=SPEAKERS)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the targets of new samples that are nearest to their own reference; 1/24 by chance."""
        hits: list[float] = []

        def compare(hidden: Tensor, where: Voices) -> Tensor:
            references, targets = pooled(hidden, where)
            hits.extend(((targets @ references.T).argmax(dim=1) == torch.arange(SPEAKERS)).float().tolist())
            return torch.zeros(())

        module = LossModule(self.model, compare)
        for _ in range(5):
            samples = self.samples()
            batch = pack([build_sequence(sample, self.tokens) for sample in samples])
            module(batch, voices(samples, np.arange(SPEAKERS)))
        return float(np.mean(hits))


def test_the_gradient_reaches_the_adapter_alone(model: Any, tokens: AudioTokens) -> None:
    toy = Toy(model, tokens)
    with torch.no_grad():
        for name, parameter in toy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    toy.loss().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in toy.adapter)
    assert all(p.grad is None for p in toy.model.parameters() if not p.requires_grad)


def test_voices_are_told_apart_better_with_training(model: Any, tokens: AudioTokens) -> None:
    toy = Toy(model, tokens)
    before = toy.accuracy()
    optimizer = torch.optim.AdamW(toy.adapter, lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        toy.loss().backward()
        optimizer.step()
    after = toy.accuracy()
    assert before < 0.85, before
    assert after > 0.95, after


def test_off_is_off_and_on_is_reported(project: Project) -> None:
    project.train(project.job())
    plain = project.adapter(3)
    assert all("loss/contrastive" not in line for line in project.metrics())
    project.forget()
    project.train(project.job(loss=LossJob(text=1, audio=1, contrastive=ContrastiveJob(weight=0.5, temperature=0.1))))
    assert any(not torch.equal(plain[name], tensor) for name, tensor in project.adapter(3).items())
    for line in project.metrics():
        parts = line["loss/audio"] + line["loss/text"] + 0.5 * line["loss/contrastive"]
        assert line["loss/total"] == pytest.approx(parts, rel=1e-6)
        assert line["loss/contrastive"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("replicate, shard", [(2, 1), (1, 2)])
def test_two_processes_see_the_negatives_of_both(project: Project, replicate: int, shard: int) -> None:
    job = project.job(loss=ONLY, optimizer=project.job().optimizer.model_copy(update={"max_grad_norm": 1e9}))
    project.train(job)
    alone, lines = project.adapter(3), project.metrics()
    project.forget()
    mesh, batch = MeshJob(replicate=replicate, shard=shard), BatchJob(global_samples=4, micro_samples=2, accumulation=1)
    finished = train(project, 2, job.model_copy(update={"mesh": mesh, "batch": batch}))
    assert finished.returncode == 0, finished.stderr[-3000:]
    for line, expected in zip(project.metrics(), lines, strict=True):
        assert line["loss/contrastive"] == pytest.approx(expected["loss/contrastive"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    # AdamW divides by the gradients' size, so that heads, whose gradients are zero but for rounding, are left out.
    for name, tensor in project.adapter(3).items():
        if "lm_head" not in name:
            torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
