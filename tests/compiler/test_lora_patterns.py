"""Ranks and alphas of single modules, from the spec's patterns to PEFT's regular expressions."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.catalog.adapter import value_of
from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.compiler.compile import compile_spec
from higgsc.contract.jobs import LoraJob, TrainJob

VALID = Path(__file__).parent.parent / "fixtures" / "diagnostics" / "valid.yaml"


def lora(*overrides: str) -> LoraJob:
    compilation = compile_spec(VALID, overrides=overrides)
    assert compilation.diagnostics == ()
    job = compilation.compiled[0].plan.step("train").job
    assert isinstance(job, TrainJob)
    return job.lora


def test_the_first_pattern_counts_in_whatever_order_peft_saves_them() -> None:
    found = lora("lora.rank_pattern={layers.1.audio_mlp.down_proj: 2, audio_mlp.*: 6, o_proj: 4}").rank_pattern
    assert next(iter(found)) == r"layers\.1\.audio_mlp\.down_proj"
    assert list(found)[2] == "o_proj"
    for patterns in (found, dict(sorted(found.items())), dict(reversed(found.items()))):
        ranks = {name: value_of(patterns, name, 64) for name in TINY.linear_modules()}
        assert ranks["model.layers.1.audio_mlp.down_proj"] == 2
        assert ranks["model.layers.0.audio_mlp.down_proj"] == ranks["model.layers.1.audio_mlp.up_proj"] == 6
        assert ranks["model.layers.3.self_attn.o_proj"] == 4
        assert ranks["model.layers.3.mlp.down_proj"] == 64


def test_patterns_that_do_not_meet_stay_short() -> None:
    job = lora("lora.alpha_pattern={audio_mlp.*: 8, self_attn.q_proj: 16.5}", "lora.heads=[text]")
    assert job.alpha_pattern == {r"audio_mlp\.[^.]*": 8, r"self_attn\.q_proj": 16.5}


@pytest.mark.parametrize(
    "overrides, more",
    [
        (["lora.rank_pattern={self_attn.q_proj: 1}"], -63 * 4 * (128 + 128)),
        (["lora.dora=true"], 4 * (2 * 128 + 2 * 64 + 2 * (256 + 256 + 128))),
        (["lora.full_heads=[audio]"], 8208 * 128),
    ],
)
def test_what_is_trained_is_counted(overrides: list[str], more: int) -> None:
    assert lora(*overrides).trainable_parameters - lora().trainable_parameters == more
