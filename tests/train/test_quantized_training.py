"""Trainings on a quantised base: resumed, checkpointed, on two ranks, and beside one that is not quantised."""

from __future__ import annotations

import json
import logging
import shutil
from typing import get_args

import pytest
import torch
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.contract.jobs import BatchJob, CheckpointJob, LossJob, MeshJob, OptimizerJob, SamplesJob
from higgsc.contract.outcome import StepError
from higgsc.train.decoder.quantized import QuantizedLinear, Scheme
from higgsc.train.model.adapter import open_adapter
from higgsc.train.model.build import adapter_parameters
from higgsc.train.model.quantize import quantize_base
from higgsc.train.objective.loss import LossModule, objective
from higgsc.train.optimizer import adamw
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import MakeSample, Project
from .ranks import errors, train
from .test_decoder import EVERYWHERE, adapted

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_training_goes_on_to_the_bit(project: Project, scheme: Scheme, caplog: pytest.LogCaptureFixture) -> None:
    """Killed before its last checkpoint was written; one of them speaks too, by transformers' own layers."""
    speech = SamplesJob(count=1, prompts="held-out", temperature=0.0) if scheme == "fp8" else None
    job = project.job(
        quantize=scheme,
        precision="bf16",
        optimizer=project.job().optimizer.model_copy(update={"steps": 4}),
        checkpoint=CheckpointJob(every_steps=2, keep_last=2, samples=speech),
    )
    with caplog.at_level(logging.INFO, "higgsc"):
        project.train(job)
    assert caplog.text.count(f"base in {scheme} on cpu") == 1
    expected, figures = project.adapter(4), project.metrics()[-1]["loss/total"]
    shutil.rmtree(project.root / "run" / "checkpoints" / "step-4")
    project.train(job)
    found = project.adapter(4)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert project.metrics()[-1]["loss/total"] == figures
    folder = project.root / "run" / "checkpoints" / "step-4" / "adapter"
    assert open_adapter(folder).base == "builtin:tiny"
    assert "quantization" not in json.loads((folder / "adapter_config.json").read_text())
    with pytest.raises(StepError, match=r"quantize .* → None"):
        project.train(job.model_copy(update={"quantize": None}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_computed_again_give_the_same_adapter(project: Project, scheme: Scheme) -> None:
    project.train(project.job(quantize=scheme))
    expected = project.adapter(3)
    for mode in ("selective", "full"):
        project.forget()
        project.train(project.job(quantize=scheme, activation_checkpointing=mode))
        found = project.adapter(3)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_two_ranks_equal_one(project: Project) -> None:
    """Each with the whole base, and with half of it; the rows are the same. From the second step on, rounding in
    float32 tips numbers over to the next of eight bits here and there."""
    jobs = {}
    for scheme in SCHEMES:
        alone = BatchJob(global_samples=4, micro_samples=1, accumulation=4)
        run = f"alone-{scheme}"
        project.train(project.job(quantize=scheme, batch=alone, run=run, checkpoints=f"{run}/checkpoints"))
    batch = BatchJob(global_samples=4, micro_samples=1, accumulation=2)
    for name, scheme in (("replicate", "fp8"), *(("shard", each) for each in SCHEMES)):
        mesh = MeshJob(**{"replicate": 1, "shard": 1, name: 2})
        run = f"{name}-{scheme}"
        jobs[run] = project.job(quantize=scheme, mesh=mesh, batch=batch, run=run, checkpoints=f"{run}/checkpoints")
    finished = train(project, 2, *jobs.values())
    assert finished.returncode == 0, errors(finished)
    for run, job in jobs.items():
        pairs = zip(project.metrics(run), project.metrics(f"alone-{job.quantize}"), strict=True)
        for number, (line, expected) in enumerate(pairs):
            within = 1e-2 if job.quantize == "fp8" and number else 1e-5
            for figure in ("loss/total", "loss/audio", "loss/text", "grad_norm"):
                assert line[figure] == pytest.approx(expected[figure], rel=within), (run, number, figure)


@pytest.mark.slow
def test_compiled_layers_compute_the_same(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the compiler does but its machine code."""
    steps = project.job().optimizer.model_copy(update={"steps": 1})
    project.train(project.job(quantize="fp8", optimizer=steps))
    expected = project.metrics()
    project.forget()
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compiling(run, backend="aot_eager", **options))
    torch._dynamo.reset()
    project.train(project.job(quantize="fp8", optimizer=steps, compile=True))
    for line, plain in zip(project.metrics(), expected, strict=True):
        for name in ("loss/audio", "loss/text", "grad_norm"):
            assert line[name] == pytest.approx(plain[name], rel=1e-5)


def losses(scheme: Scheme | None, make_sample: MakeSample, steps: int) -> list[float]:
    """Of a training of adapters on every matrix, eight samples in turn."""
    config = HiggsAudioV2Config(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, codebook_size=1026, pad_token_id=0, bos_token_id=1, eos_token_id=50,
        audio_token_id=51, audio_bos_token_id=52, audio_delay_token_id=53, audio_stream_bos_id=1024,
        audio_stream_eos_id=1025,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    causal = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    with torch.no_grad():
        for parameter in causal.parameters():  # so that the base has a say
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = adapted(causal, target_modules=EVERYWHERE)
    if scheme is not None:
        quantize_base(causal, scheme)
        assert sum(isinstance(module, QuantizedLinear) for module in causal.modules()) == 3 * 10
    module = LossModule(model).train()
    job = OptimizerJob(
        learning_rate=2e-3, warmup_steps=0, decay="constant", weight_decay=0, max_grad_norm=1, epochs=None, steps=steps
    )
    parameters = list(adapter_parameters(model).values())
    optimizer, found = adamw(parameters, job), []
    tokens = AudioTokens.of(config)
    rows = [pack([build_sequence(make_sample(2 * n + k), tokens) for k in range(2)]) for n in range(4)]
    for step in range(steps):
        row = rows[step % len(rows)]
        sums = module(row)
        loss = objective(
            sums,
            LossJob(text=1, audio=1),
            audio_labels=int(row.audio_labels.ge(0).sum()),
            text_labels=row.text_labels.numel(),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(float(loss))
    return found


@pytest.mark.slow
def test_losses_over_200_steps_are_those_of_the_base_as_it_is(make_sample: MakeSample) -> None:
    """The loss falls from 12.1 to 4.5 nats. Stated bounds on the largest relative difference at any step."""
    exact = losses(None, make_sample, 200)
    assert exact[-1] < exact[0] / 2
    for scheme, bound in (("fp8", 0.03), ("int8", 0.02), ("nf4", 0.05)):
        found = losses(scheme, make_sample, 200)
        worst = max(abs(one / other - 1) for one, other in zip(found, exact, strict=True))
        assert worst < bound, (scheme, worst)
