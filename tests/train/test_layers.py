"""Layers that keep less for the backward pass, and compiled ones: they train what plain ones train."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.train.model import layers as layers_module
from higgsc.train.model.build import adapter_parameters, add_lora
from higgsc.train.model.layers import expect_compiler, run_layers
from higgsc.train.objective.loss import LossModule
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import MakeSample, Project
from .test_lora_kinds import base, lora

Mode = Literal["none", "selective", "full"]
CPU = torch.device("cpu")
TARGETS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "audio_mlp.down_proj")


def prepared(project: Project, mode: Mode, *, compiled: bool = False, **options: Any) -> LossModule:
    """The tiny base with an adapter that does something, its layers running as asked."""
    job = lora(targets=TARGETS, **options)
    module = LossModule(add_lora(base(), job, seed=1)).train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_parameters(module).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    run_layers(module.causal.model, project.job(lora=job, activation_checkpointing=mode, compile=compiled))
    return module


def gradients(module: LossModule, make_sample: MakeSample) -> dict[str, torch.Tensor]:
    """After two rows of different lengths and mixtures."""
    tokens = AudioTokens.of(module.causal.config)
    torch.manual_seed(5)
    for seed, reference, target in ((0, 5, 4), (1, 7, 9)):
        row = [build_sequence(make_sample(seed + n, reference=reference, target=target), tokens) for n in (0, 10)]
        sums = module(pack(row))
        (sums.audio.sum() + sums.text).backward()
    found = {name: parameter.grad for name, parameter in adapter_parameters(module).items()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"dora": True}], ids=["plain", "dropout", "DoRA"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradients_are_the_same_to_the_bit(
    project: Project, make_sample: MakeSample, mode: Mode, options: dict[str, Any]
) -> None:
    expected = gradients(prepared(project, "none", **options), make_sample)
    found = gradients(prepared(project, mode, **options), make_sample)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def added(_: Any, a: tuple[int, int], b: tuple[int, int], *__: Any, **___: Any) -> int:
    """Operations of a product that is added in place, which torch's counter leaves out."""
    return 2 * a[0] * a[1] * b[1]


def test_what_is_dear_is_computed_once_more_or_not(project: Project, make_sample: MakeSample) -> None:
    """`full` repeats the layers' products, `selective` the adapters' small ones alone."""
    counted: dict[str, int] = {}
    forward: set[int] = set()
    modes: tuple[Mode, ...] = ("none", "selective", "full")
    for mode in modes:
        module = prepared(project, mode)
        row = pack([build_sequence(make_sample(0), AudioTokens.of(module.causal.config))])
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
            sums = module(row)
            forward.add(counter.get_total_flops())
            (sums.audio.sum() + sums.text).backward()
        counted[mode] = counter.get_total_flops()
    assert len(forward) == 1
    assert counted["none"] < counted["selective"] < counted["none"] * 1.03
    assert counted["full"] > counted["none"] * 1.15


def test_a_training_is_the_same_to_the_bit(project: Project) -> None:
    project.train(project.job())
    expected = project.adapter(3)
    for mode in ("selective", "full"):
        project.forget()
        project.train(project.job(activation_checkpointing=mode))
        found = project.adapter(3)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_layers_as_the_compiler_sees_them(
    project: Project, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the compiler does but its machine code: a graph for each of three kinds of layer, for any length of row.

    The first layer's input needs no gradient, and the last goes on with labelled tokens alone.
    """
    compiling = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compiling(run, backend="aot_eager", **options))
    expected = gradients(prepared(project, "none"), make_sample)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = gradients(prepared(project, "selective", compiled=True), make_sample)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert 0 < counters["stats"]["unique_graphs"] <= 3


@pytest.mark.slow
def test_a_compiled_training(project: Project) -> None:
    steps = project.job().optimizer.model_copy(update={"steps": 1})
    project.train(project.job(optimizer=steps))
    expected = project.metrics()
    project.forget()
    torch._dynamo.reset()
    project.train(project.job(optimizer=steps, compile=True))
    for line, plain in zip(project.metrics(), expected, strict=True):
        for name in ("loss/audio", "loss/text", "grad_norm"):
            assert line[name] == pytest.approx(plain[name], rel=1e-5)


def test_no_compiler(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(StepError, match=r"`training\.compile` needs g\+\+ or clang\+\+, which this") as caught:
        project.train(project.job(compile=True))
    assert caught.value.code == ExitCode.MISSING_INPUT
    monkeypatch.setattr(layers_module, "find_spec", lambda name: None)
    with pytest.raises(StepError, match="needs gcc or clang and the package triton"):
        expect_compiler(torch.device("cuda"))
