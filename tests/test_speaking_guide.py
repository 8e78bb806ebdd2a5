"""The guide to speaking: its first Python examples run as they stand, and it names every option there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from higgsc.cli.generate import command as generate_command

pytest.importorskip("torch")
pytest.importorskip("fastapi")

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "speaking.md").read_text("utf-8")


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[:2]:
        exec(compile(example, "speaking.md", "exec"), names)
    assert (tmp_path / "out.wav").stat().st_size > 44
    assert re.search(r"\d s, (ended|cut off), codes \(\d+, 8\)\n(\d\.\d\d s more\n)+$", capsys.readouterr().out)
    assert len(list(tmp_path.glob("*.wav"))) == 3  # the second example's, by the ids of the prompts


def test_the_limits_are_those_of_the_code() -> None:
    from higgsc.deploy.serve.settings import Limits

    limits = Limits()
    for text in (
        f"{limits.upload_bytes // 1_000_000} MB",
        f"{limits.json_bytes // 1024} KiB",
        f"{limits.characters:,} characters",
        f"0.5 to {limits.reference_seconds:g} s",
        f"{limits.request_seconds:g} s (`--timeout`)",
        f"{limits.header_seconds:g}, {limits.body_seconds:g} (`--body-timeout`), {limits.write_seconds:g} s",
        f"{limits.queue} (`--queue`), {limits.connections}",
    ):
        assert text in GUIDE, text


def test_every_option_of_the_sampling_is_in_the_guide() -> None:
    for one in generate_command.params:
        if one.name in {
            "temperature",
            "top_p",
            "top_k",
            "ras_window",
            "ras_max_repeats",
            "max_seconds",
            "force",
            "adapter",
            "prompts",
            "form",
        }:
            assert one.opts[0] in GUIDE
