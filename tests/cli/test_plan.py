"""`higgsc plan`: what people and programs read, and what `--verify` does when a closed form is wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from higgsc.catalog.estimate import Estimate
from higgsc.cli import main, plan
from higgsc.contract.outcome import ExitCode

ROOT = Path(__file__).parent.parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "docs" / "schema" / "estimate.v1.json").read_text("utf-8"))
IN_STEPS = ("--set", "training.epochs=null", "--set", "training.steps=20000")


def planned(*arguments: str, spec: str = "arabic") -> Result:
    return CliRunner().invoke(plan.command, [str(ROOT / "specs" / f"{spec}.yaml"), *arguments])


def document(*arguments: str, spec: str = "arabic") -> Any:
    result = planned("--json", *arguments, spec=spec)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    return found["plans"]


def test_a_person_reads_memory_speed_and_what_they_rest_on() -> None:
    result = planned()
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0].startswith("arabic  8×H200 · LoRA comprehensive r=64")
    assert lines[2] == ("memory  34.3 of 141 GB per GPU   fits; up to 43,956 tokens per micro-batch (22 samples) would")
    assert lines[3].startswith("base 11.5 · adapter 0.6 · optimizer 1.3 · gradients 0.6 · activations 19.7")
    assert lines[4] == "for 4 of the longest samples allowed, 7,992 tokens; 10% of the GPU stays free"
    assert lines[5].startswith("speed   about ")
    assert lines[6].startswith("a guess: 25% of the GPU's peak is assumed, with clips of 10 s")
    assert "for every 1,000 h of target speech and epoch, of which there are 3" in lines[8]


def test_a_length_in_steps_has_a_time_and_a_site_gives_it_a_price() -> None:
    (without,) = document(*IN_STEPS)
    assert without["speed"]["total_gpu_hours"] == pytest.approx(8 * without["speed"]["total_hours"])
    assert without["speed"]["total_cost"] is None
    (found,) = document(*IN_STEPS, "--set", "site.price_per_gpu_hour=2.5")
    assert found["speed"]["total_cost"] == pytest.approx(2.5 * found["speed"]["total_gpu_hours"])
    text = planned(*IN_STEPS, "--set", "site.price_per_gpu_hour=2.5").stdout
    assert "20,000 steps take about 2.9 h: 24 GPU-hours, 59 at 2.5 an hour" in text
    assert " an hour" not in planned(*IN_STEPS).stdout.split("time ")[1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_json_of_every_shipped_spec_follows_its_schema(spec: Path) -> None:
    for found in document(spec=spec.stem):
        memory = found["memory"]
        assert sum(memory["bytes"].values()) == memory["total_bytes"]
        assert (found["speed"] is None) == (found["unknown"] is not None)
        assert memory["fits"] in (True, None)


def test_the_schema_refuses_what_it_does_not_know() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (found,) = document()
    for wrong in ({**found, "more": 1}, {**found, "mesh": {}}, {**found, "traced": {"parts": {}, "total": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"schema": "higgsc.estimate/v1", "plans": [wrong]}, SCHEMA)


def test_a_sweep_has_a_plan_for_every_point() -> None:
    assert len({found["name"] for found in document(spec="sweep")}) == 4


def test_nothing_is_guessed_about_an_unknown_gpu() -> None:
    text = planned(spec="two-node").stdout
    assert "34.3 GB per process   no verdict: `hardware: 2x8` names no GPU" in text
    assert "speed   not known: `hardware: 2x8` names no GPU" in text
    assert "time " not in text


def test_a_longer_clip_is_slower_to_start_and_cheaper_a_second() -> None:
    (short,), (long,) = document("--seconds", "2"), document("--seconds", "20")
    assert short["speed"]["step_seconds"] < long["speed"]["step_seconds"]
    assert short["memory"] == long["memory"]  # the spec's limit counts, not the typical clip


def test_a_spec_with_errors_has_no_plan() -> None:
    result = planned("--set", "parallelism.shard=3")
    assert result.exit_code == ExitCode.DIAGNOSTICS
    assert result.stdout == ""
    assert "HC301" in result.stderr


@pytest.mark.slow
def test_verify_traces_the_trainer_and_fails_when_a_closed_form_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    real, recorded = plan._trace, []

    def trace(points: Any) -> list[dict[str, Any]]:
        recorded[:] = recorded or real(points)
        return recorded

    monkeypatch.setattr(plan, "_trace", trace)
    (found,) = document("--verify", spec="quickstart")
    assert abs(found["difference"]) < plan.TOLERANCE
    assert sum(found["traced"]["parts"].values()) == found["traced"]["total"]

    honest: Callable[..., Estimate] = plan.estimate_of

    def wrong(*arguments: Any) -> Estimate:
        estimate = honest(*arguments)
        activations = int(estimate.memory.activations * 0.9)
        return replace(estimate, memory=replace(estimate.memory, activations=activations))

    monkeypatch.setattr(plan, "estimate_of", wrong)
    result = planned("--verify", spec="quickstart")
    assert result.exit_code == ExitCode.DIAGNOSTICS
    assert "differs by more than 5%: -8" in result.stdout


def test_verify_takes_one_bad_point_of_a_sweep_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def traces(points: Any) -> list[dict[str, Any]]:
        rows = [{"parts": found.memory.parts, "total": found.memory.total} for _, found in points]
        rows[2] |= {"total": rows[2]["total"] * 2}
        return rows

    monkeypatch.setattr(plan, "_trace", traces)
    result = planned("--verify", spec="sweep")
    assert result.exit_code == ExitCode.DIAGNOSTICS
    assert result.stdout.count("agrees") == 3
    assert result.stdout.count("differs by more than 5%: -50.0%") == 1


def test_verify_without_the_extra_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "torch" else here(name))
    monkeypatch.setattr("sys.argv", ["higgsc", "plan", str(ROOT / "specs" / "quickstart.yaml"), "--verify"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.MISSING_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "this command needs torch, which is not installed\n  = help: pip install 'higgsc[train]'" in captured.err


def test_a_trace_that_fails_is_not_taken_for_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.sys, "executable", "/bin/false")
    monkeypatch.setattr(plan, "find_spec", lambda name: name)
    result = planned("--verify", spec="quickstart")
    assert "the trace failed: no output" in str(result.exception)
