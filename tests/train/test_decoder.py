"""The decoder on packed rows against transformers' own, with PEFT's own adapters: loss and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import scaled_dot_product_attention

from higgsc.deploy.probe import hidden_states
from higgsc.train.decoder.attention import segments
from higgsc.train.decoder.functional import rms_norm, rotary, swiglu
from higgsc.train.decoder.layer import decode, install
from higgsc.train.decoder.lora import project
from higgsc.train.decoder.routes import Routes
from higgsc.train.objective.cross_entropy import cross_entropy
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence

from .conftest import MakeSample

NONE = np.zeros(0, dtype=np.int64)
EVERYWHERE = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranks": {"rank_pattern": {"k_proj": 2, "audio_mlp.up_proj": 6}, "use_rslora": True},
    "DoRA": {"use_dora": True},
    "some": {"target_modules": ["q_proj", "audio_mlp.down_proj"]},
}


def adapted(model: Any, **options: Any) -> Any:
    """The model with adapters that do something."""
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": EVERYWHERE} | options))
    made = peft.get_peft_model(model, config)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.03)
    return made


def stock(causal: Any, batch: PackedBatch) -> Tensor:
    return hidden_states(causal.model, batch)


def ours(causal: Any, batch: PackedBatch) -> Tensor:
    return decode(causal.model, batch.input_ids, batch.position_ids, batch.audio_input_ids, batch.routes)


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def close(found: Tensor, expected: Tensor, name: str) -> None:
    """Gradients within the rounding of float32: as a whole, and at the entry that is furthest apart."""
    assert float((found - expected).norm() / expected.norm()) < 1e-6, name
    assert apart(found, expected) < 2e-6, name


def row(make_sample: MakeSample, tokens: AudioTokens) -> PackedBatch:
    return pack([build_sequence(make_sample(seed, reference=3 + seed, target=9 - seed), tokens) for seed in range(4)])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_are_those_of_the_stock_layers(
    model: Any, tokens: AudioTokens, make_sample: MakeSample, kind: str
) -> None:
    made, batch = adapted(model, **KINDS[kind]), row(make_sample, tokens)
    causal = made.get_base_model()
    expected = stock(causal, batch)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()

    install(causal.model)
    found = ours(causal, batch)
    (found * direction).sum().backward()
    assert apart(found, expected) < 1e-6
    assert gradients
    for name, parameter in made.named_parameters():
        assert (parameter.grad is None) == (name not in gradients), name
        if parameter.grad is not None:
            close(parameter.grad, gradients[name], name)
    # Generating speech goes on with transformers' layers.
    assert apart(stock(causal, batch), expected) < 1e-6


def test_the_last_layer_at_labelled_tokens_alone(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    """The same outputs in another order, and the same gradients, at tokens of both kinds."""
    made, batch = adapted(model), row(make_sample, tokens)
    causal, labelled = made.get_base_model(), batch.routes.labelled
    install(causal.model)
    direction = torch.randn(len(labelled.places), 64)
    found, gradients = [], []
    for only in (False, True):
        ids = batch.input_ids, batch.position_ids, batch.audio_input_ids
        hidden = decode(causal.model, *ids, batch.routes, labelled=only)
        found.append(hidden if only else hidden[labelled.places])
        (found[-1] * direction).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
        made.zero_grad()
    assert len(labelled.text) == 2 * 4
    assert torch.equal(labelled.places[labelled.by_audio_label], batch.audio_positions)
    assert torch.equal(labelled.places[labelled.by_text_label], batch.text_positions)
    assert apart(found[1], found[0]) < 1e-6
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, name)


def test_every_weight_learns_what_it_does_in_the_stock_layers(
    model: Any, tokens: AudioTokens, make_sample: MakeSample
) -> None:
    """With nothing frozen: norms of both kinds, embeddings, matrices."""
    batch = row(make_sample, tokens)
    expected = stock(model, batch)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.model.named_parameters()}
    model.zero_grad()
    install(model.model)
    (ours(model, batch) * direction).sum().backward()
    for name, parameter in model.model.named_parameters():
        assert apart(parameter.grad, gradients[name]) < 5e-6, name


def test_in_bfloat16_it_differs_by_no_more_than_rounding(
    model: Any, tokens: AudioTokens, make_sample: MakeSample
) -> None:
    batch = row(make_sample, tokens)
    made = adapted(model)
    exact = stock(made.get_base_model(), batch)
    made.get_base_model().to(torch.bfloat16)
    for name, parameter in made.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    causal = made.get_base_model()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = stock(causal, batch)
        install(causal.model)
        found = ours(causal, batch)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.2 * (theirs - exact).norm()
    assert (found - exact).norm() / exact.norm() < 0.03
    found.float().square().sum().backward()
    for name, parameter in made.named_parameters():
        if "lora" in name:
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
            assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("prefixes", [(-1, -1, -1, -1), (-1, 0, 0, -1), (-1, -1, 1, 0)])
def test_attention_is_that_of_a_dense_mask(prefixes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    lengths = (7, 5, 1, 6)
    routes = Routes.of(np.zeros(19, dtype=np.bool_), lengths, prefixes, audio_labels=NONE, text_labels=NONE)
    segment = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    place, before = torch.arange(19), torch.tensor(prefixes)[segment]
    mask = (segment[:, None] == segment) & (place[:, None] >= place) | (before[:, None] == segment)
    query = torch.randn(19, 6, 8, requires_grad=True)
    key, value = (torch.randn(19, 2, 8, requires_grad=True) for _ in range(2))

    expected = scaled_dot_product_attention(
        *(heads.transpose(0, 1)[None] for heads in (query, key, value)), attn_mask=mask, enable_gqa=True
    )[0].transpose(0, 1)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), (query, key, value))
    found, lse = segments(query, key, value, routes.starts, routes.prefixes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert lse.shape == (6, 19)
    for one, other in zip(torch.autograd.grad((found * direction).sum(), (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "lengths, prefixes, message",
    [
        ((3, 4), (), "the segments make up the row"),
        ((4, 4), (-1,), "a prefix, or -1, for each"),
        ((4, 4), (-1, 1), "a prefix comes before"),
        ((2, 2, 4), (-1, 0, 1), "a prefix has no prefix"),
    ],
)
def test_segments_that_make_no_sense(lengths: tuple[int, ...], prefixes: tuple[int, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        Routes.of(np.zeros(8, dtype=np.bool_), lengths, prefixes, audio_labels=NONE, text_labels=NONE)


def test_the_functions_have_the_gradients_of_their_formulas() -> None:
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    where = torch.tensor([True, False, True])[:, None]
    check = torch.autograd.gradcheck
    # The norm's statistics are in float32, so that its differences are taken wider apart.
    loose = {"eps": 1e-3, "atol": 1e-3, "rtol": 1e-3}
    assert check(lambda x, w: rms_norm(x, w, 1e-5), (random(3, 6), random(6)), **loose)
    assert check(
        lambda x, w, o: rms_norm(x, w, 1e-5, other=o, where=where), (random(3, 6), random(6), random(6)), **loose
    )
    assert check(swiglu, (random(3, 6), random(3, 6)))
    angle = torch.randn(3, 1, 2, dtype=torch.float64)
    assert check(lambda x: rotary(x, angle.cos(), angle.sin()), (random(3, 2, 4),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_is_that_of_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgsc.train.objective.cross_entropy._PART", 40)  # four rows at a time
    torch.manual_seed(0)
    logits = (torch.randn(11, 9) * 3).to(dtype).requires_grad_()
    labels = torch.randint(0, 9, (11,))
    labels[[2, 5]] = -100
    weights = torch.rand(11)
    expected = torch_cross_entropy(logits.float(), labels, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), logits)
    found = cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6 if dtype == torch.float32 else 2e-2, atol=1e-6)


def test_adapters_keep_their_input_once_and_no_product(model: Any) -> None:
    """For q, k and v together: the input, and the three low-rank products as one."""
    attention = adapted(model).get_base_model().model.layers[0].self_attn
    modules = (attention.q_proj, attention.k_proj, attention.v_proj)
    x, kept = torch.randn(10, 64, requires_grad=True), []
    parameters = {id(parameter) for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        project(x, *modules)
    assert [tuple(tensor.shape) for tensor in kept if id(tensor) not in parameters] == [(10, 64), (10, 12)]
