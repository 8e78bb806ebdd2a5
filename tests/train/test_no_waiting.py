"""An optimizer step asks nothing of the device, so that a GPU never waits for the host, nor the host for it.

That forward, backward and update need no data at all to be queued is also what `test_trace.py` lives on: it runs them
on tensors that have none.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from higgsc.contract.jobs import BatchJob
from higgsc.train.decoder import attention
from higgsc.train.decoder.attention import attend, kernel, mask_of, segments
from higgsc.train.decoder.routes import Routes, Row
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence
from higgsc.train.training import Training

from .conftest import MakeSample, Project
from .test_decoder import stock

ATEN = torch.ops.aten
WAITS = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.equal, ATEN.is_nonzero, ATEN.masked_select, ATEN._unique2}
NONE = np.zeros(0, dtype=np.int64)


class Waits(TorchDispatchMode):
    """Notes operations whose result the host has to wait for: a value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        boolean = func is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func.overloadpacket in WAITS or boolean:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    step, found = Training._optimizer_step, []

    def watched(self: Training, number: int) -> None:
        with Waits() as waits:
            step(self, number)
        found.append(waits.seen)

    monkeypatch.setattr(Training, "_optimizer_step", watched)
    batch = BatchJob(global_samples=4, micro_samples=2, accumulation=2)
    project.train(project.job(batch=batch, log_every_steps=100))
    assert found == [[], [], []]


def test_the_stock_layers_wait(model: Any, tokens: AudioTokens, make_sample: MakeSample) -> None:
    """So that the test above can fail."""
    with Waits() as waits:
        stock(model, pack([build_sequence(make_sample(0), tokens)])).sum().backward()
    assert len(waits.seen) >= 2 * 8  # of two layers; a GPU waits in masked additions too


def test_what_attends_where() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert kernel(cpu, torch.bfloat16, shared=True) == "segments"
    assert kernel(cuda, torch.bfloat16, shared=False) == "varlen"
    assert kernel(cuda, torch.bfloat16, shared=True) == "flex"
    assert kernel(cuda, torch.float32, shared=False) == "flex"  # varlen takes 16 bits alone


def stand_in(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int,
    *, return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Tensor | None = None, block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:  # fmt: skip
    """What `varlen_attn` is documented to compute, for causal windows."""
    assert cu_seq_k is not None
    assert window_size == (-1, 0)
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    outputs = []
    for first, last in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        heads = (tensor[first:last].transpose(0, 1)[None] for tensor in (query, key, value))
        out = scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=enable_gqa)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def ungrouped(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """As torch 2.11 has it, where every query head has a key-value head."""
    return stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window_size)


@pytest.mark.parametrize(
    "name, prefixes",
    [("varlen", (-1, -1, -1)), ("ungrouped", (-1, -1, -1)), ("flex", (-1, -1, -1)), ("flex", (-1, 0, 0))],
)
def test_what_the_kernels_of_a_gpu_are_asked_for(
    name: str, prefixes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward: with a stand-in of the same signature for varlen, and Flex's own uncompiled arithmetic."""
    names = list(inspect.signature(varlen_attn).parameters)
    known = [list(inspect.signature(one).parameters) for one in (stand_in, ungrouped)]
    assert names in known, "torch has changed what is to be called"
    monkeypatch.setattr(attention, "_GROUPED", name != "ungrouped")
    monkeypatch.setattr(attention, "varlen_attn", ungrouped if name == "ungrouped" else stand_in)
    name = name.replace("ungrouped", "varlen")
    monkeypatch.setattr(attention, "_flex", lambda: flex_attention)
    monkeypatch.setattr(attention, "kernel", lambda *_, **__: name)
    lengths = (150, 9, 40)
    routes = Routes.of(np.zeros(sum(lengths), dtype=np.bool_), lengths, prefixes, audio_labels=NONE, text_labels=NONE)
    torch.manual_seed(0)
    query, key, value = torch.randn(199, 6, 16), torch.randn(199, 2, 16), torch.randn(199, 2, 16)
    mask = mask_of(routes, torch.device("cpu"), torch.float32)
    row = Row(routes=routes, cos=query, sin=query, mask=mask)
    expected = segments(query, key, value, routes.starts, routes.prefixes)[0]
    torch.testing.assert_close(attend(query, key, value, row), expected, rtol=0, atol=2e-6)
