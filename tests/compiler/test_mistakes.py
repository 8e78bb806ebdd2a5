"""The mistakes that people make, and that each of them is one message, at the right line, with the way out.

`tests/fixtures/mistakes/003-key-misspelt.yaml` is a spec with a single mistake; the line where it is ends in
`# <- here`. The marker is taken out before the spec is compiled (it would stand inside an open quote), and the
rendering is compared with the `.txt` beside the spec. A mistake that shows in an extended file has its marker there.
`HIGGSC_UPDATE_FIXTURES=1 pytest tests/compiler/test_mistakes.py` rewrites the expected texts; read the difference.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Diagnostic
from higgsc.compiler.fixes import apply_fixes
from higgsc.compiler.render import FORMATS, render

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mistakes"
SPECS = sorted(path.stem for path in FIXTURES.glob("*.yaml"))
MARKER = re.compile(rb" *# <- here")
SECRETS = ("hf_abc", "qrstuvwxyz", "0123456789abcdef", "hunter2")


@pytest.fixture(scope="module")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the fixtures without their markers."""
    folder = tmp_path_factory.mktemp("fixtures") / "mistakes"
    shutil.copytree(FIXTURES, folder)
    for path in folder.rglob("*.yaml"):
        path.write_bytes(MARKER.sub(b"", path.read_bytes()))
    return folder


def only(found: tuple[Diagnostic, ...]) -> Diagnostic:
    assert len(found) == 1, render(found, "text")
    return found[0]


def marked_line(stem: str, diagnostic: Diagnostic) -> int:
    """The line with the marker: in the spec, else in the file that the diagnostic is about."""
    for name in (f"{stem}.yaml", diagnostic.primary.span.source.name):
        lines = (FIXTURES / name).read_bytes().splitlines()
        if found := [number for number, line in enumerate(lines, start=1) if MARKER.search(line)]:
            assert len(found) == 1, f"{name} is marked {len(found)} times"
            return found[0]
    raise AssertionError(f"{stem} is not marked")


@pytest.mark.parametrize("stem", SPECS)
def test_a_mistake_is_one_message_with_the_way_out(unmarked: Path, tmp_path: Path, stem: str) -> None:
    """What `check --fix` would write unseen has to leave nothing of the mistake, and no new one."""
    compilation = compile_spec(unmarked / f"{stem}.yaml")
    diagnostic = only(compilation.diagnostics)
    text = render(compilation.diagnostics, "text")
    expected = FIXTURES / f"{stem}.txt"
    if os.environ.get("HIGGSC_UPDATE_FIXTURES"):
        expected.write_text(text, "utf-8")
    assert text == expected.read_text("utf-8")
    assert diagnostic.primary.span.line == marked_line(stem, diagnostic)
    assert diagnostic.help or "has to be" in diagnostic.message, "no way out"
    assert bool(compilation.compiled) == (diagnostic.severity == "warning")
    if diagnostic.fix is not None:
        shutil.copytree(unmarked, tmp_path / "mistakes")
        mended = tmp_path / "mistakes" / f"{stem}.yaml"
        apply_fixes(compile_spec(mended).diagnostics)
        left = compile_spec(mended)
        assert left.compiled, render(left.diagnostics, "text")


@pytest.mark.parametrize("stem", [stem for stem in SPECS if "secret" in stem or "wandb-key" in stem])
@pytest.mark.parametrize("form", FORMATS)
def test_a_secret_is_never_printed(unmarked: Path, stem: str, form: str) -> None:
    spec = unmarked / f"{stem}.yaml"
    text = render(compile_spec(spec).diagnostics, form)  # type: ignore[arg-type]
    assert not any(secret in text for secret in SECRETS), text


@pytest.mark.parametrize(
    "token",
    [
        "hf_abcdefghijklmnopqrstuvwxyz0123",
        "sk-abcdefghijklmnopqrstuvwxyz0123456789",
        "sk-ant-abcdefghijklmnopqrstuvwxyz0123",
        "wandb_v1_abcdefghijklmnopqrstuvwxyz0123",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "0123456789abcdef0123456789abcdef01234567",
        "00000000001111111111e2222222222333333333",  # would be read as a number
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        "secrets: [{}]\n",
        "secrets:\n  - '{}'\n",
        "secrets: {{X: {}}}\n",
        "secrets: [X={}]\n",
        "wandb: {{api_key: {}}}\n",
        "secrets: [{}]\nsecrets: [A]\n",  # another mistake, which ends the reading
        "secrets: [{}\n",
        "secrets: [A]\nseed: [{}]\nx: *{}\n",
    ],
)
def test_a_secret_is_masked_whatever_else_is_wrong(tmp_path: Path, token: str, place: str) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text((FIXTURES / "parts" / "complete.yaml").read_text() + place.format(token, token))
    for overrides in ((), (f"secrets=[{token}]",), (f"lora.rank={token}", f"secrets=['{token}")):
        compilation = compile_spec(spec, overrides=overrides)
        assert not compilation.compiled
        for form in FORMATS:
            assert token not in render(compilation.diagnostics, form)
            assert token[8:] not in render(compilation.diagnostics, form)


@pytest.mark.parametrize(
    "text",
    [
        "model: {family: higgs-audio-v2, revision: 0123456789abcdef0123456789abcdef01234567}\n",
        "secrets: [HF_TOKEN, WANDB_API_KEY]\n",
        "output: runs/sk-SK-common-voice-17-0-rank64-alpha128-epochs3\n",
        "data: {train: [{path: data/hf_export/train.json}]}\n",
    ],
)
def test_what_is_no_secret_passes(tmp_path: Path, text: str) -> None:
    (tmp_path / "base.yaml").write_text((FIXTURES / "parts" / "complete.yaml").read_text())
    (tmp_path / "s.yaml").write_text(f"extends: base.yaml\n{text}")
    compilation = compile_spec(tmp_path / "s.yaml")
    assert compilation.compiled, render(compilation.diagnostics, "text")
    assert compilation.diagnostics == ()


def test_a_part_and_a_site_are_no_mistakes(unmarked: Path) -> None:
    for part in ("complete", "by-epochs"):
        assert compile_spec(unmarked / "parts" / f"{part}.yaml").compiled
