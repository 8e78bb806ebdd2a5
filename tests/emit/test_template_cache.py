"""Compiled templates are kept, never trusted against their source, and never needed."""

import sys
from pathlib import Path

import pytest
from jinja2 import DictLoader, Environment

from higgsc.emit.template_cache import TemplateCache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rendered(source: str) -> str:
    return Environment(loader=DictLoader({"a": source}), bytecode_cache=TemplateCache()).get_template("a").render(x=3)


def written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_kept_template_is_used_until_it_changes(folder: Path) -> None:
    assert rendered("x = {{ x }}") == "x = 3"
    (kept,) = written(folder)
    first = kept.read_bytes()
    assert rendered("x = {{ x }}") == "x = 3"
    assert kept.read_bytes() == first
    assert rendered("y = {{ x }}") == "y = 3"
    assert kept.read_bytes() != first


@pytest.mark.parametrize("content", [b"", b"not bytecode", None])
def test_a_damaged_one_is_made_anew(folder: Path, content: bytes | None) -> None:
    rendered("x = {{ x }}")
    (kept,) = written(folder)
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert rendered("x = {{ x }}") == "x = 3"
    assert kept.read_bytes() == whole


def test_nothing_is_written_where_python_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert rendered("x = {{ x }}") == "x = 3"
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_no_error(folder: Path) -> None:
    folder.write_text("a file where the folder belongs")
    assert rendered("x = {{ x }}") == "x = 3"
