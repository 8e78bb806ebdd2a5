"""Machine-readable forms of diagnostics, and the fixes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel
from sarif_pydantic import Sarif

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.fixes import apply_fixes
from higgsc.compiler.render import FORMATS, render

ROOT = Path(__file__).parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "diagnostics"
SPECS = sorted(FIXTURES.glob("HC*.yaml"))
SCHEMAS = ROOT / "docs" / "schema"


def unknown_properties(model: Any) -> set[str]:
    """Names that the model does not know: it keeps them silently, so a misspelt one would pass."""
    found = set(model.model_extra or {})
    for value in vars(model).values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                found |= unknown_properties(inner)
    return found


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_json_follows_its_schema(spec: Path) -> None:
    document = json.loads(render(compile_spec(spec).diagnostics, "json"))
    jsonschema.validate(document, json.loads((SCHEMAS / "diagnostics.v1.json").read_text()))
    assert document["errors"] + document["warnings"] == len(document["diagnostics"]) > 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_sarif_follows_a_published_model_of_the_standard(spec: Path) -> None:
    text = render(compile_spec(spec).diagnostics, "sarif")
    model = Sarif.model_validate_json(text)
    assert unknown_properties(model) <= {"columnKind", "fixes"}  # in the standard (3.14.17, 3.27.30), not in the model
    document = json.loads(text)
    assert document["version"] == "2.1.0"
    run = document["runs"][0]
    assert run["columnKind"] == "unicodeCodePoints"
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_concise_and_github_are_one_line_a_problem() -> None:
    diagnostics = compile_spec(FIXTURES / "HC501-no-module.yaml").diagnostics
    concise = render(diagnostics, "concise").splitlines()
    assert concise[0] == (
        "HC501-no-module.yaml:7:7: error[HC501] LoRA target `self_attn.q_porj` matches no module of higgs-audio-v2; "
        "did you mean `self_attn.q_proj`?"
    )
    github = render(diagnostics, "github").splitlines()
    assert len(concise) == len(github) == 2
    assert github[0].startswith("::error file=HC501-no-module.yaml,line=7,col=7,endLine=7,endColumn=23,title=HC501::")
    assert "%0A" in github[0]


def test_programs_get_the_diagnostics_on_stdout() -> None:
    for form in FORMATS:
        command = [sys.executable, "-m", "higgsc", "check", "--format", form, str(FIXTURES / "HC311-batch.yaml")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert ("HC311" in result.stdout) == (form != "text")
        assert ("HC311" in result.stderr) == (form == "text")


def test_fixes_change_the_wrong_places_and_nothing_else(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "# a comment that stays\napiVersion: higgsc/v1\nname: x   # and this one\n"
        "model: {family: higs-audio-v2, revision: 1234567}\n"
        "data: {train: [{pth: 'تدريب.json'}]}\nhardware: 8xH200\n"
        "lora: {rnak: '16', targets: [q_proj]}\n"
        "training: {epochs: 1, global_batch: {samples: 1.28e2}, learning_rate: 1e-4}\n",
        "utf-8",
    )
    found = compile_spec(spec).diagnostics
    assert apply_fixes(found) == {spec: 5}
    assert spec.read_text("utf-8") == (
        "# a comment that stays\napiVersion: higgsc/v1\nname: x   # and this one\n"
        'model: {family: higgs-audio-v2, revision: "1234567"}\n'
        "data: {train: [{path: 'تدريب.json'}]}\nhardware: 8xH200\n"
        "lora: {rank: '16', targets: [q_proj]}\n"
        "training: {epochs: 1, global_batch: {samples: 128}, learning_rate: 1e-4}\n"
    )
    # The renamed key uncovers a value of the wrong type, which the next round mends.
    assert apply_fixes(compile_spec(spec).diagnostics) == {spec: 1}
    assert compile_spec(spec).compiled


def test_a_rename_onto_a_key_that_is_there_is_not_a_safe_fix(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text((FIXTURES / "valid.yaml").read_text() + "lora: {rank: 8, rnk: 16}\n")
    (found,) = compile_spec(spec).diagnostics
    assert found.help == "did you mean `rank`?"
    assert found.fix is None
