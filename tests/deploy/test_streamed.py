"""A model that computes from files: what transformers and PEFT compute, and no weights in memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import HiggsAudioV2ForConditionalGeneration  # noqa: E402

from higgsc.deploy.probe import hidden_states, random_probe  # noqa: E402
from higgsc.deploy.streamed import StreamedModel  # noqa: E402
from higgsc.deploy.weights import open_weights  # noqa: E402
from higgsc.deploy.workers import workers  # noqa: E402
from tests.deploy.conftest import MakeAdapter  # noqa: E402


def streamed(base: Path, pool: Any) -> StreamedModel:
    config = json.loads((base / "config.json").read_text("utf-8"))
    return StreamedModel(open_weights(base), config, device=torch.device("cpu"), pool=pool)


def matrices_in_memory() -> list[Any]:
    """The parameters of two dimensions that have bytes of their own, of whatever model."""
    found = [thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Parameter)]
    return [p for p in found if p.dim() > 1 and not p.is_meta and p.untyped_storage().nbytes() > p.itemsize]


@pytest.mark.parametrize("dora", [False, True])
@torch.inference_mode()
def test_computes_what_peft_does_and_keeps_nothing(dora: bool, base: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(use_dora=dora, modules_to_save=["audio_lm_head", "embed_tokens", "norm"])
    others = {id(parameter): parameter for parameter in matrices_in_memory()}
    with workers() as pool:
        model = streamed(base, pool)
        model.add_adapter(adapter)
        probe = random_probe(model.model.config)
        gc.disable()  # what only the collector would find counts too
        try:
            hidden = hidden_states(model.model.model, probe)
            logits = model.model.audio_lm_head(hidden)
            with model.merged_by_peft(torch.bfloat16):
                rounded = hidden_states(model.model.model, probe)
            kept = [tuple(parameter.shape) for parameter in matrices_in_memory() if id(parameter) not in others]
        finally:
            gc.enable()
        again = hidden_states(model.model.model, probe)
    assert kept == []
    assert torch.equal(hidden, again), "as it was before the rounding"
    whole = HiggsAudioV2ForConditionalGeneration.from_pretrained(base, use_text_head=True, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(whole, adapter).eval()
    expected = hidden_states(adapted.get_base_model().model, probe)
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, adapted.get_base_model().audio_lm_head(expected), rtol=1e-5, atol=1e-5)
    merged = adapted.merge_and_unload()
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    torch.testing.assert_close(rounded, hidden_states(merged.model, probe), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(rounded, hidden, rtol=1e-5, atol=1e-5)
