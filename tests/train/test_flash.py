"""FlashAttention 3 is used where GPU, package and torch allow it; its kernels were not run, activating it is real."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from higgsc.contract.outcome import StepError
from higgsc.train.decoder.attention import announce
from higgsc.train.decoder.flash import PACKAGE, newest_flash

CUDA = torch.device("cuda", 0)
WITH_KERNELS = """
import torch
torch.library.define("flash_attn_3::fwd", "(Tensor q) -> Tensor")
torch.library.define("flash_attn_3::bwd", "(Tensor q) -> Tensor")
"""


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    yield
    restore_flash_attention_impl(_raise_warn=False)
    sys.modules.pop(PACKAGE, None)


def package(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{PACKAGE}.py").write_text(content, "utf-8")
    monkeypatch.syspath_prepend(folder)


def active() -> str | None:
    found: str | None = current_flash_attention_impl()
    return found


def test_without_the_package_it_is_the_second(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        announce(CUDA, torch.bfloat16, shared=True)
    assert caplog.messages == ["attention on cuda: varlen (FlashAttention 2); flex in rows that share a reference"]
    assert active() is None


def test_a_package_that_does_not_work_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would go on with version 2, and nobody would know."""
    package(tmp_path, "raise ImportError('undefined symbol: _ZN3c104cuda')", monkeypatch)
    with pytest.raises(StepError, match="does not work here: undefined symbol") as raised:
        newest_flash(CUDA)
    assert raised.value.code == 66
    assert active() is None


def test_a_package_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "", monkeypatch)
    with pytest.raises(StepError, match="kernels"):
        newest_flash(CUDA)


@pytest.mark.parametrize("known", [True, False])
def test_a_torch_that_cannot_is_said(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package(tmp_path, WITH_KERNELS, monkeypatch)
    if known:
        monkeypatch.setattr(torch.nn.attention, "list_flash_attention_impls", lambda: ["FA4"])
    else:
        monkeypatch.delattr(torch.nn.attention, "list_flash_attention_impls")
    assert newest_flash(CUDA) == 2
    assert caplog.messages == [f"FlashAttention 3 is installed, but torch {torch.__version__} cannot use it"]
    assert active() is None


def test_with_the_package_torch_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package(tmp_path, WITH_KERNELS, monkeypatch)
    with caplog.at_level(logging.INFO):
        announce(CUDA, torch.bfloat16, shared=False)
    assert caplog.messages == ["attention on cuda: varlen (FlashAttention 3)"]
    assert active() == "FA3"


def test_not_on_a_gpu_of_another_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, WITH_KERNELS, monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    assert newest_flash(CUDA) == 2
    assert active() is None
