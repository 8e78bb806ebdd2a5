"""`lora: null` from spec to job files: what is trained, which steps there are, what does not fit and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.passes.memory import estimate_of

SPECS = Path(__file__).parents[2] / "specs"


def compiled(*overrides: str) -> Compilation:
    return compile_spec(SPECS / "full.yaml", overrides=overrides)


def errors(*overrides: str) -> list[Any]:
    return [found for found in compiled(*overrides).diagnostics if found.severity == "error"]


def test_the_jobs_of_a_whole_model() -> None:
    (made,) = compiled().compiled
    assert [(step.name, step.needs) for step in made.plan.steps] == [
        ("prepare", ()),
        ("train", ("prepare",)),
        ("evaluate", ("train",)),
    ]
    assert made.plan.step("train").job.lora is None
    evaluate = made.plan.step("evaluate").job
    assert evaluate.merged is None
    assert evaluate.trained.model_dump() == {
        "checkpoints": "runs/full/checkpoints",
        "select": "best",
        "best": "validation/audio_loss",
    }
    assert made.ir.integer("training.trainable_parameters") == 5_771_283_456
    assert made.ir.spec.merge is None
    (without,) = compiled("evaluate=null").compiled
    assert [step.name for step in without.plan.steps] == ["prepare", "train"]


def test_sixteen_bytes_a_parameter_are_divided_by_the_shards() -> None:
    (made,) = compiled().compiled
    found = estimate_of(made.ir)
    assert found.fits
    assert found.memory.base == 0
    assert found.memory.adapter == 4 * 5_771_283_456 // 16
    assert found.memory.optimizer == 8 * 5_771_283_456 // 16
    assert found.memory.gradients >= 4 * 5_771_283_456 // 16  # two micro-batches


@pytest.mark.parametrize(
    "overrides, help_",
    [
        (["hardware=1x8xH100", "parallelism.shard=1"], "`parallelism: {shard: 2}` fits"),
        (
            ["hardware=1xH100", "parallelism.shard=1", "training.micro_batch.samples=1"],
            "`parallelism: {shard: 2}` on",
        ),
        (
            [
                "hardware=2x8xH100",
                "training.micro_batch.samples=16",
                "training.global_batch.samples=512",
                "training.activation_checkpointing=none",
            ],
            "`micro_batch: {samples: 8}` fits, and so does `training: {activation_checkpointing: selective}`",
        ),
    ],
)
def test_what_does_not_fit_says_what_helps(overrides: list[str], help_: str) -> None:
    (found,) = errors(*overrides)
    assert found.code == "HC331"
    assert help_ in found.help


def test_an_adapters_keys_bring_the_adapter_back() -> None:
    """A key below `lora` in a later layer is an adapter, not a whole model with a wish."""
    (made,) = compiled("lora.rank=8").compiled
    assert made.plan.step("train").job.lora.rank == 8
    assert made.plan.step("merge").job.merged == "runs/full/merged"


def test_a_rate_for_adapters_is_too_high() -> None:
    (found,) = [each for each in compiled("training.learning_rate=5e-3").diagnostics if each.code == "HC324"]
    assert "a whole model" in found.message
    assert "1e-5" in found.help
