"""Batches by tokens in a real training, their rows made ahead of time: it changes nothing but the time."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HiggsAudioV2Config

from higgsc.contract.jobs import BatchJob, CheckpointJob, ContrastiveJob, LossJob, MeshJob
from higgsc.contract.outcome import StepError
from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter
from higgsc.train import training
from higgsc.train.model.builtin import tiny_path
from higgsc.train.rows import inputs as inputs_module
from higgsc.train.rows.ahead import Ahead
from higgsc.train.rows.inputs import Inputs
from higgsc.train.rows.plan import plan_of
from higgsc.train.rows.sequence import AudioTokens

from .conftest import Project
from .ranks import errors, train
from .test_resume import finish, long_job, outcome, stop_at_vote  # noqa: F401

BATCH = BatchJob(global_tokens=400, micro_tokens=200, accumulation=2)
CPU = torch.device("cpu")


@pytest.fixture
def voices(tmp_path: Path) -> Project:
    """Twenty-four samples of four references, two held out, each of 40 to 70 positions."""
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", made_by={"base": "builtin:tiny", "revision": None}) as store:

        def clip(frames: int) -> int:
            return store.add_clip(random.integers(0, 1024, (frames, 8)).astype(np.uint16), audio=bytes(32))

        references = [(clip(9 + number), random.integers(0, 256, 6)) for number in range(4)]
        for number in range(24):
            reference, prefix = references[number % 4]
            middle = random.integers(0, 256, int(random.integers(5, 12)))
            store.add_sample(
                Segments(prefix=prefix, middle=middle, suffix=np.array([263, 261])),
                reference=reference,
                target=clip(int(random.integers(2, 20))),
                speaker="abcd"[number % 4],
                validation=number in (3, 6),
                record={"id": f"sample-{number}"},
            )
    return Project(root=tmp_path)


def inputs(project: Project) -> Inputs:
    job, store = project.job(batch=BATCH), Store.open(project.root / "store")
    tokens = AudioTokens.of(HiggsAudioV2Config.from_pretrained(tiny_path("model")))
    return Inputs(job, store, plan_of(job, store), tokens=tokens, rank=0, device=CPU)


def rows_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rows"]


def test_it_says_how_full_rows_are(voices: Project, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        voices.train(voices.job(batch=BATCH))
    (line,) = (message for message in caplog.messages if "rows of 200 tokens an epoch" in message)
    assert "samples with the same reference share it, which saves" in line
    assert any("ms a step to make ahead" in message for message in caplog.messages)
    assert not rows_threads()


@pytest.mark.slow
def test_interrupted_or_not_near_or_far_ahead(
    voices: Project,
    monkeypatch: pytest.MonkeyPatch,
    stop_at_vote: Any,  # noqa: F811
) -> None:
    """Ten steps over several epochs, with dropout: near ahead in one go; far ahead, and stopped again and again."""
    job = long_job(voices, batch=BATCH)
    monkeypatch.setattr(Ahead.__init__, "__defaults__", (1,))
    voices.train(job)
    expected = outcome(voices)
    assert voices.metrics()[-1]["epoch"] > 2
    voices.forget()
    monkeypatch.setattr(Ahead.__init__, "__defaults__", (50,))
    finish(voices, job, [3, 5, 2, 4], stop_at_vote)
    assert outcome(voices) == expected


def test_sharing_and_packing_change_no_loss(voices: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples in the same steps, each by itself."""
    job = voices.job(batch=BATCH)
    voices.train(job)
    shared, lines = voices.adapter(3), voices.metrics()
    voices.forget()
    whole = inputs_module.assemble
    row = Inputs.row

    def apart(self: Inputs, samples: Any) -> Any:
        made = row(self, samples)
        return made._replace(batch=Several(whole(self._store, one, self._tokens) for one in samples[:, None]))

    forward = training.LossModule.forward

    def sums(self: Any, batch: Any, compared: Any = None) -> Any:
        found = [forward(self, one, compared) for one in (batch if isinstance(batch, list) else [batch])]
        return type(found[0])(*(torch.stack(parts).sum(dim=0) for parts in zip(*found, strict=True)))

    class Several(list[Any]):
        def to(self, device: torch.device) -> Several:
            return Several(one.to(device) for one in self)

    monkeypatch.setattr(Inputs, "row", apart)
    monkeypatch.setattr(training.LossModule, "forward", sums)
    voices.train(job)
    for line, expected in zip(voices.metrics(), lines, strict=True):
        assert line["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    for name, tensor in voices.adapter(3).items():
        torch.testing.assert_close(tensor, shared[name], rtol=0, atol=1e-4)


def test_an_error_names_the_sample(voices: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assemble = inputs_module.assemble

    def broken(store: Store, indices: Any, *rest: Any, **options: Any) -> Any:
        if 7 in indices:
            raise ValueError("cannot reshape array.")
        return assemble(store, indices, *rest, **options)

    monkeypatch.setattr(inputs_module, "assemble", broken)
    with pytest.raises(StepError, match="cannot make a row of sample sample-7: cannot reshape array") as caught:
        voices.train(voices.job(batch=BATCH, checkpoint=CheckpointJob(every_steps=1, keep_last=9)))
    assert isinstance(caught.value.__cause__, ValueError)
    assert not rows_threads()


def test_what_is_asked_for_out_of_turn(voices: Project) -> None:
    """After a return to a checkpoint, other batches follow; and a step may be given up in the middle."""
    source = inputs(voices)
    with Ahead(source, 20) as ahead:
        for number in (0, 1, 7, 2, 3):
            taken = ahead.step(number)
            assert taken.number == number
            rows = list(ahead.rows())
            assert len(rows) == len(taken.rows) == 2
            for row, samples in zip(rows, taken.rows, strict=True):
                assert torch.equal(row.batch.input_ids, source.row(samples).batch.input_ids)
        ahead.step(4)
        next(ahead.rows())
        assert ahead.step(4).number == 4
        assert len(rows_threads()) == 1
    assert not rows_threads()


def test_no_more_is_made_than_was_asked_for(voices: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    row = Inputs.row
    monkeypatch.setattr(Inputs, "row", lambda self, samples: (made.append(1), row(self, samples))[1])
    with Ahead(inputs(voices), 100, ahead=3) as ahead:
        ahead.step(0)
        time.sleep(0.2)
        assert len(made) <= 4
        assert len(rows_threads()) == 1
    assert not rows_threads()


def test_rows_are_made_while_the_model_works(voices: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Inputs.row

    def slow(self: Inputs, samples: Any) -> Any:
        time.sleep(0.01)
        return row(self, samples)

    monkeypatch.setattr(Inputs, "row", slow)
    with Ahead(inputs(voices), 12) as ahead:
        for number in range(12):
            ahead.step(number)
            for _ in ahead.rows():
                time.sleep(0.015)
        assert ahead.made > 24 * 0.01
        assert ahead.waited < ahead.made / 2


def test_a_sample_longer_than_a_row_stops_it_at_once(voices: Project) -> None:
    batch = BatchJob(global_tokens=80, micro_tokens=40, accumulation=2)
    with pytest.raises(StepError, match=r"rows of 40 tokens .* are too short for \d+ of 24 samples: sample-") as caught:
        voices.train(voices.job(batch=batch))
    assert "`training.micro_batch.tokens` to" in str(caught.value)


def test_rows_of_tokens_have_no_contrastive_loss(voices: Project) -> None:
    loss = LossJob(text=1, audio=1, contrastive=ContrastiveJob(weight=0.1, temperature=0.1))
    with pytest.raises(StepError, match="rows of tokens do not hold as many"):
        voices.train(voices.job(batch=BATCH, loss=loss))


def test_other_rows_are_another_training(voices: Project) -> None:
    voices.train(voices.job(batch=BATCH))
    other = BatchJob(global_tokens=400, micro_tokens=400, accumulation=1)
    optimizer = voices.job().optimizer.model_copy(update={"steps": 5})
    with pytest.raises(StepError, match=r"batch.micro_tokens 200 → 400 \(other samples in each row\)"):
        voices.train(voices.job(batch=other, optimizer=optimizer))


@pytest.mark.slow
def test_two_ranks_equal_one(voices: Project) -> None:
    """Rows with different numbers of samples on each rank; whole copies of the base, and shards."""
    jobs = {}
    for name, mesh in {
        "alone": MeshJob(replicate=1, shard=1),
        "replicate": MeshJob(replicate=2, shard=1),
        "shard": MeshJob(replicate=1, shard=2),
    }.items():
        batch = BATCH.model_copy(update={"accumulation": 2 // mesh.data_parallel})
        jobs[name] = voices.job(batch=batch, mesh=mesh, run=name, checkpoints=f"{name}/checkpoints")
    voices.train(jobs.pop("alone"))
    finished = train(voices, 2, *jobs.values())
    assert finished.returncode == 0, errors(finished)
    for run in jobs:
        for line, expected in zip(voices.metrics(run), voices.metrics("alone"), strict=True):
            for figure in {"loss/total", "grad_norm", "epoch", "validation/audio_loss"} & expected.keys():
                assert line[figure] == pytest.approx(expected[figure], rel=1e-5), (run, figure)
        for name, tensor in voices.adapter(3, "alone").items():
            torch.testing.assert_close(voices.adapter(3, run)[name], tensor, rtol=0, atol=1e-4)
