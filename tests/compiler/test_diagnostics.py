"""Every diagnostic code on a spec that provokes it, against the text that a user sees.

`tests/fixtures/diagnostics/HC101-unknown-key.yaml` is compiled and its rendering compared with the `.txt` beside
it. `HIGGSC_UPDATE_FIXTURES=1 pytest tests/compiler/test_diagnostics.py` rewrites the expected texts; read the
difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from higgsc.compiler.codes import CODES
from higgsc.compiler.compile import compile_spec
from higgsc.compiler.render.text import display_width, render_text

FIXTURES = Path(__file__).parent.parent / "fixtures" / "diagnostics"
SPECS = sorted(FIXTURES.glob("HC*.yaml"))


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_diagnostic_reads_as_expected(spec: Path) -> None:
    compilation = compile_spec(spec)
    text = render_text(compilation.diagnostics)
    expected = spec.with_suffix(".txt")
    if os.environ.get("HIGGSC_UPDATE_FIXTURES"):
        expected.write_text(text, "utf-8")
    assert text == expected.read_text("utf-8")


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_fixture_provokes_its_code(spec: Path) -> None:
    code = spec.stem.split("-")[0]
    compilation = compile_spec(spec)
    assert code in {diagnostic.code for diagnostic in compilation.diagnostics}
    has_error = any(diagnostic.severity == "error" for diagnostic in compilation.diagnostics)
    assert (not compilation.compiled) == has_error


def test_every_code_has_a_fixture() -> None:
    by_commands = sorted((FIXTURES / "commands").glob("HC*.yaml"))  # tests/cli/test_command_codes.py
    assert all(spec.with_suffix(".txt").is_file() for spec in (*SPECS, *by_commands))
    assert set(CODES) == {spec.stem.split("-")[0] for spec in (*SPECS, *by_commands)}


def test_the_valid_fixture_has_nothing_to_say() -> None:
    compilation = compile_spec(FIXTURES / "valid.yaml")
    assert compilation.diagnostics == ()
    assert compilation.compiled


def test_messages_follow_the_house_style() -> None:
    for spec in SPECS:
        for diagnostic in compile_spec(spec).diagnostics:
            assert not diagnostic.message.endswith("."), diagnostic.message
            assert diagnostic.message[0] == diagnostic.message[0].lower() or diagnostic.message.startswith("LoRA")
            assert diagnostic.primary.span.source.name.startswith(("HC", "parts/", "base/"))


def test_carets_count_columns_not_characters() -> None:
    """Arabic with vowel marks, CJK and emoji before the caret: what counts is the width on the terminal."""
    assert display_width("abc") == 3
    assert display_width("مَرْحَبًا") == 5
    assert display_width("漢字") == 4
    assert display_width("🎙") in (1, 2)


def test_missing_file_names_the_file(tmp_path: Path) -> None:
    (found,) = compile_spec(tmp_path / "nowhere.yaml").diagnostics
    assert found.code == "HC001"
    assert "nowhere.yaml" in found.message


@pytest.mark.parametrize("kind", ["directory", "fifo", "large", "binary"])
def test_strange_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "spec.yaml"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            path.write_bytes(b"#" * (2 << 20))
        case "binary":
            path.write_bytes(bytes(range(256)))
    (found,) = compile_spec(path).diagnostics
    assert found.code == "HC001"
