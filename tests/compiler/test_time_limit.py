"""HC326 and what the report says about time: a guess, named as one, and only where there is something to guess from."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.passes.memory import estimate_of
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all
from higgsc.spec.base import seconds_of

SPECS = Path(__file__).parent.parent.parent / "specs"
IN_STEPS = ("training.epochs=null", "training.steps=20000")


def codes(spec: str, *overrides: str) -> list[str]:
    compilation = compile_spec(SPECS / f"{spec}.yaml", overrides=overrides)
    assert compilation.compiled, compilation.diagnostics
    return [found.code for found in compilation.diagnostics]


@pytest.mark.parametrize(
    "limit, seconds",
    [("00:30:00", 1800), ("24:00:00", 86_400), ("02:00", 7200), ("2-12:00", 216_000), ("1-00:00:01", 86_401)],
)
def test_seconds_of_a_time_limit(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


def test_the_warning_begins_where_the_prediction_passes_the_limit() -> None:
    (made,) = compile_spec(SPECS / "arabic.yaml", overrides=IN_STEPS).compiled
    speed = estimate_of(made.ir).speed
    assert speed is not None
    assert speed.total_hours is not None
    minutes = int(speed.total_hours * 60)
    assert codes("arabic", *IN_STEPS, "site.time_limit=0:30:00") == ["HC326"]
    above, below = minutes + 1, minutes
    for count, found in ((above, []), (below, ["HC326"])):
        limit = f"{count // 60}:{count % 60:02}:00"
        assert codes("arabic", *IN_STEPS, f"site.time_limit={limit}") == found, limit


def test_the_number_of_jobs_and_the_assumption_are_named() -> None:
    compilation = compile_spec(SPECS / "arabic.yaml", overrides=(*IN_STEPS, "site.time_limit=1:00:00"))
    (warning,) = compilation.diagnostics
    assert warning.severity == "warning"
    assert "takes about 2.9 h, by a guess" in warning.message
    assert warning.help is not None
    assert warning.help.startswith("it would need about 3 jobs, one after the other")
    assert "25% of the GPU's peak is assumed" in warning.notes[0]
    (default,) = compile_spec(SPECS / "arabic.yaml", overrides=(IN_STEPS[0], "training.steps=900000")).diagnostics
    assert "24:00:00 (the default)" in default.message


@pytest.mark.parametrize(
    "overrides",
    [
        ("site.time_limit=0:10:00",),  # in epochs, so nobody knows how many steps
        (*IN_STEPS, "site.time_limit=0:10:00", "hardware=1x8"),  # a GPU without a name
        (*IN_STEPS, "site.time_limit=0:10:00", "precision=fp32", "training.micro_batch.samples=1"),  # no fp32 peak
    ],
)
def test_nothing_is_said_where_nothing_is_predicted(overrides: tuple[str, ...]) -> None:
    assert codes("arabic", *overrides) == []


def test_the_report_shows_memory_by_part_time_and_price() -> None:
    compilation = compile_spec(SPECS / "arabic.yaml", overrides=(*IN_STEPS, "site.price_per_gpu_hour=2.5"))
    (build,) = builds_of(compilation)
    files = emit_all(build)
    report = files["report.md"]
    assert "| activations | 19.66 | kept by the decoder for the backward pass |" in report
    assert "| **total** | **34.32** | for 4 of the longest samples allowed, 7,992 tokens" in report
    assert "It rests on an assumption: 25% of the GPU's peak is assumed" in report
    assert "the training takes about 2.9 h: 24 GPU-hours, 59 at 2.5 an hour." in report
    assert "price" not in files["plan.json"]

    (build,) = builds_of(compile_spec(SPECS / "two-node.yaml"))
    report = emit_all(build)["report.md"]
    assert "How fast it will be is not known: `hardware: 2x8` names no GPU." in report
    assert "GPU-hours" not in report
