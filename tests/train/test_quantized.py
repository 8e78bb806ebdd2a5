"""Quantised matrices: what is stored, and what is multiplied, against the formulas they are stated by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from higgsc.catalog.quantized import matrix_bytes
from higgsc.contract.outcome import StepError
from higgsc.train.decoder import quantized
from higgsc.train.decoder.lora import project
from higgsc.train.decoder.quantized import FP8, QuantizedLinear, Scheme, dense, quantize
from higgsc.train.model.quantize import check_device, quantize_base

SCHEMES: tuple[Scheme, ...] = ("fp8", "int8", "nf4")


def weight(rows: int = 48, columns: int = 128) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, columns) * torch.logspace(-3, 0, rows)[:, None]


def close(found: Tensor, expected: Tensor, within: float = 1e-6) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= within * float(expected.detach().abs().max())


def in_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """By the formula: a row's largest number becomes 448."""
    scale = rows.abs().amax(1, keepdim=True) / 448
    return (rows / scale).to(FP8).double(), scale.double()


@pytest.mark.parametrize("scheme, bits, worst", [("fp8", 8, 1 / 16), ("int8", 8, 1 / 254), ("nf4", 4, 0.16)])
def test_what_is_stored_is_near_and_small(scheme: Scheme, bits: int, worst: float) -> None:
    """fp8 errs by a share of the number, int8 of the row's largest, nf4 of the largest of 64."""
    matrix = weight()
    layer = QuantizedLinear(matrix, scheme)
    again = dense(layer.parts, scheme, torch.float32)
    largest = {
        "fp8": matrix.abs() + matrix.abs().amax(1, keepdim=True) / 448 / 64,
        "int8": matrix.abs().amax(1, keepdim=True).expand_as(matrix),
        "nf4": matrix.unflatten(1, (-1, 64)).abs().amax(2).repeat_interleave(64, 1),
    }[scheme]
    assert bool(((again - matrix).abs() <= worst * largest * (1 + 1e-6)).all())
    stored = layer.values.nbytes + layer.scales.nbytes
    assert stored == matrix_bytes(48, 128, scheme)
    assert layer.values.nbytes == matrix.numel() * bits // 8
    torch.testing.assert_close(dense((*quantize(again, scheme), *layer.parts[2:]), scheme, torch.float32), again)


def test_four_bits_are_those_of_torchao() -> None:
    nf4 = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    matrix = weight(64, 256)
    # torchao rounds the scales too, in groups of 256; ours are kept, so that numbers differ by the scales' error.
    theirs = nf4.NF4Tensor.from_tensor(matrix, 64, 256).get_original_weight()
    layer = QuantizedLinear(matrix, "nf4")
    ours = dense(layer.parts, "nf4", torch.float32)
    assert float((ours - theirs).norm() / ours.norm()) < 0.02
    assert float((ours - matrix).norm()) <= float((theirs - matrix).norm())


def test_products_in_fp8_are_the_formulas() -> None:
    """Forward and backward, of one matrix, summed in float64 here."""
    matrix, x, g = weight(), torch.randn(7, 128, requires_grad=True), torch.randn(7, 48)
    layer = QuantizedLinear(matrix, "fp8")
    rows, t = in_fp8(x.detach())
    q, s = in_fp8(matrix)
    y = layer(x)
    close(y.double(), t * (rows @ q.T) * s.T)
    y.backward(g)
    rows, t = in_fp8(g * s.T.float())
    assert x.grad is not None
    close(x.grad.double(), t * (rows @ q))
    assert all(p.grad is None and not p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_products_of_what_is_made_whole(scheme: Scheme) -> None:
    matrix, x, g = weight(), torch.randn(2, 7, 128, requires_grad=True), torch.randn(2, 7, 48)
    layer = QuantizedLinear(matrix, scheme)
    whole = dense(layer.parts, scheme, torch.float32)
    y = layer(x)
    torch.testing.assert_close(y, x @ whole.T)
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ whole)
    assert all(p.grad is None and not p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_is_rounded_by_itself(scheme: Scheme) -> None:
    """Whatever else is in the row, and also where there is nothing in it."""
    layer = QuantizedLinear(weight(), scheme)
    x = torch.randn(9, 128)
    x[3] *= 1e4
    x[5] = 0
    together = layer(x)
    for number in range(9):
        close(layer(x[number : number + 1])[0], together[number])
    assert not together[5].any()
    assert layer(x[:0]).shape == (0, 48)


def test_what_is_not_finite_stays_so() -> None:
    """The training looks for it; rounding must not hide it."""
    layer, x = QuantizedLinear(weight(), "fp8"), torch.randn(3, 128)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    found = layer(x)
    assert found[:2].isnan().any(1).all()
    assert bool(found[2].isfinite().all())


class Block(nn.Module):
    """Three matrices that read one input, as query, key and value do."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(128, out, bias=False) for out in (64, 32, 32))


class Whole(nn.Module):
    """One layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Block()])
        self.head = nn.Linear(128, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def adapted(**options: Any) -> Any:
    torch.manual_seed(1)
    made = get_peft_model(Whole(), LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj", "head"]} | options)))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_on_it_are_pefts(scheme: Scheme, dtype: torch.dtype) -> None:
    """Adapters in stacked products, against PEFT's own forward pass over the same rounded layers."""
    made = adapted().to(dtype)
    quantize_base(made.get_base_model(), scheme)
    block = made.get_base_model().model.layers[0]
    modules = (block.q_proj, block.k_proj, block.v_proj)
    assert isinstance(block.k_proj, QuantizedLinear)
    assert isinstance(block.q_proj.base_layer, QuantizedLinear)
    assert isinstance(made.get_base_model().head.base_layer, nn.Linear)
    x = torch.randn(11, 128, dtype=dtype)
    found: list[list[Tensor]] = []
    for stacked in (True, False):
        own = x.clone().requires_grad_()
        outputs = project(own, *modules) if stacked else tuple(module(own) for module in modules)
        sum((output.float().square().sum() for output in outputs), torch.zeros(())).backward()
        trained = [p.grad for p in block.parameters() if p.requires_grad]
        assert own.grad is not None
        found.append([*outputs, own.grad, *(grad for grad in trained if grad is not None)])
        assert len(found[-1]) == 3 + 1 + 4
        made.zero_grad()
    for one, other in zip(*found, strict=True):
        close(one.float(), other.float(), 2e-6 if dtype == torch.float32 else 0.03)


def test_all_that_read_one_input_round_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapted(target_modules=["q_proj", "k_proj", "v_proj"])
    quantize_base(made.get_base_model(), "fp8")
    block, inputs = made.get_base_model().model.layers[0], []
    rounded = quantized.rounded
    monkeypatch.setattr(quantized, "rounded", lambda x: inputs.append(x) or rounded(x))
    project(torch.randn(5, 128), block.q_proj, block.k_proj, block.v_proj)
    assert len(inputs) == 1


def test_rows_that_do_not_divide_into_blocks() -> None:
    whole = Whole()
    whole.model.layers[0].k_proj = nn.Linear(96, 32, bias=False)
    with pytest.raises(StepError, match=r"nf4 rounds 64 numbers .* `k_proj` has rows of 96"):
        quantize_base(whole, "nf4")


def test_a_gpu_without_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(StepError, match=r"capability 8\.9 or later\), which NVIDIA A10 is not"):
        check_device("fp8", cuda)
    check_device("int8", cuda)
    check_device("fp8", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_device("fp8", cuda)
