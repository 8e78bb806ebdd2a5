"""Setups for tests, with a small adapter and what a test changes."""

from __future__ import annotations

from dataclasses import replace

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.higgs_audio_v2 import RELEASED, TINY, HiggsAudioV2Shape
from higgsc.catalog.setup import Sample, Setup

COMPREHENSIVE = tuple(name.removeprefix("model.layers.0.") for name in TINY.linear_modules() if ".0." in name)


def setup(shape: HiggsAudioV2Shape = RELEASED, **changes: object) -> Setup:
    plain = Setup(
        shape=shape,
        precision="bf16",
        lora=AdapterShape(targets=("self_attn.q_proj",), rank=16),
        replicate=1,
        shard=1,
        accumulation=1,
    )
    return changed(plain, **changes)


def changed(plain: Setup, **changes: object) -> Setup:
    """A setup with other values, those of its adapter included."""
    lora = {name: value for name, value in changes.items() if hasattr(plain.lora, name)}
    rest = {name: value for name, value in changes.items() if name not in lora}
    return replace(plain, lora=replace(plain.lora, **lora), **rest)  # type: ignore[arg-type]


SAMPLE = Sample.of_seconds(10, 10)
