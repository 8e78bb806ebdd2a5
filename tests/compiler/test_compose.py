"""`extends`: deep merge, order, and values that remember their file."""

from __future__ import annotations

from pathlib import Path

from higgsc.compiler.composition.compose import compose, project_root
from higgsc.compiler.diagnostics import Sink


def test_later_files_win_and_values_remember_their_file(tmp_path: Path) -> None:
    specs = tmp_path / "specs"
    (specs / "base").mkdir(parents=True)
    (specs / "base" / "a.yaml").write_text("lora: {rank: 8, alpha: 16}\nname: a\nsecrets: [A, B]\n")
    (specs / "base" / "b.yaml").write_text("lora: {rank: 32}\n")
    (specs / "s.yaml").write_text("extends: [base/a.yaml, base/b.yaml]\nname: s\nlora: {dropout: 0.1}\nsecrets: [C]\n")
    composed = compose(specs / "s.yaml", project_root(specs / "s.yaml"), Sink())
    assert composed is not None
    assert composed.tree.plain() == {
        "lora": {"rank": 32, "alpha": 16, "dropout": 0.1},
        "name": "s",
        "secrets": ("C",),
    }
    origins = {path: str(composed.tree.at(path).span) for path in ("lora.rank", "lora.alpha", "lora.dropout", "name")}  # type: ignore[union-attr]
    assert origins == {
        "lora.rank": "specs/base/b.yaml:1:14",
        "lora.alpha": "specs/base/a.yaml:1:24",
        "lora.dropout": "specs/s.yaml:3:17",
        "name": "specs/s.yaml:2:7",
    }
    assert [source.name for source in composed.sources] == ["specs/s.yaml", "specs/base/a.yaml", "specs/base/b.yaml"]


def test_null_takes_an_inherited_value_back(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("training: {epochs: 3}\nmerge: {dtype: fp32}\n")
    (tmp_path / "s.yaml").write_text("extends: base.yaml\ntraining: {epochs: null, steps: 9}\nmerge: null\n")
    composed = compose(tmp_path / "s.yaml", tmp_path, Sink())
    assert composed is not None
    assert composed.tree.plain() == {"training": {"epochs": None, "steps": 9}, "merge": None}


def test_project_root_is_above_specs() -> None:
    assert project_root(Path("/p/specs/a.yaml")) == Path("/p")
    assert project_root(Path("/p/specs/deep/er/a.yaml")) == Path("/p")
    assert project_root(Path("/p/elsewhere/a.yaml")) == Path("/p/elsewhere")


def test_problems_of_a_base_are_reported_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "s.yaml").write_text("extends: base.yaml\n")
    sink = Sink()
    assert compose(tmp_path / "s.yaml", tmp_path, sink) is None
    (found,) = sink.diagnostics
    assert (found.code, found.primary.span.source.name) == ("HC004", "base.yaml")
