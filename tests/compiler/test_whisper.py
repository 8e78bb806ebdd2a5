"""`model.whisper` from spec to job files: what is trained, which steps there are, what it costs."""

from __future__ import annotations

from pathlib import Path

from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.passes.memory import estimate_of
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all

SPECS = Path(__file__).parents[2] / "specs"
WHISPER = ("model.whisper.encoder=openai/whisper-large-v3", "model.whisper.revision=06f233f")
PROJECTOR = 3072 * 1280


def compiled(*overrides: str) -> Compilation:
    return compile_spec(SPECS / "arabic.yaml", overrides=overrides)


def test_steps_and_jobs() -> None:
    """Nothing is merged; the evaluation takes the adapter of the best checkpoint."""
    (made,), (plain,) = compiled(*WHISPER).compiled, compiled().compiled
    steps = made.plan.steps
    assert [step.name for step in steps if step.name != "encode"] == ["prepare", "train", "evaluate"]
    whisper = {"encoder": "openai/whisper-large-v3", "revision": "06f233f", "width": 1280}
    assert all(step.job.model.whisper.model_dump() == whisper for step in steps)
    evaluate = made.plan.step("evaluate")
    assert evaluate.needs == ("train",)
    assert evaluate.job.merged is None
    assert evaluate.job.trained.checkpoints == f"{made.plan.run}/checkpoints"
    before, after = plain.plan.step("train").job, made.plan.step("train").job
    assert after.lora == before.lora, "the projector is none of PEFT's"
    assert before.model.whisper is None
    assert made.ir.integer("training.trainable_parameters") == before.lora.trainable_parameters + PROJECTOR
    assert "and 3,072 x 1,280 of the projector" in made.ir.derived["training.trainable_parameters"].formula


def test_switched_off_by_hand_is_no_mistake() -> None:
    assert not [found for found in compiled(*WHISPER, "merge=null").diagnostics if found.severity == "error"]
    (made,) = compiled(*WHISPER, "evaluate=null").compiled
    assert made.plan.steps[-1].name == "train"


def test_the_memory_counts_it() -> None:
    """Weight, moments, and what is kept of each reference frame."""
    fixed = ("training.micro_batch.samples=2", "training.global_batch.samples=128", "data.limits.max_seconds=10")
    with_, without = (compiled(*fixed, *more).compiled[0].ir for more in (WHISPER, ()))
    one, other = estimate_of(with_).memory, estimate_of(without).memory
    assert one.adapter - other.adapter == 4 * PROJECTOR
    assert one.optimizer - other.optimizer == 8 * PROJECTOR
    assert one.activations - other.activations == 2 * 1280 * 2 * 250


def test_the_report_says_so() -> None:
    (build,) = builds_of(compiled(*WHISPER))
    report = emit_all(build)["report.md"]
    assert "| Whisper (experimental) | `openai/whisper-large-v3` at `06f233f`, frozen, with a projector |" in report


def test_a_folder_of_another_width() -> None:
    (made,) = compiled("model.whisper.encoder=./whisper", "model.whisper.width=384").compiled
    assert made.plan.step("prepare").job.model.whisper.width == 384
