"""YAML 1.2 scalars, spans of keys and values, and limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgsc.compiler.diagnostics import Sink
from higgsc.compiler.reading.position import SourceFile
from higgsc.compiler.reading.source import Node, parse


def tree_of(text: str) -> Node:
    sink = Sink()
    tree = parse(SourceFile(Path("spec.yaml"), "spec.yaml", text), sink)
    assert tree is not None, sink.diagnostics
    return tree


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("5E+3", 5000.0),
        (".5", 0.5),
        ("10:00:00", "10:00:00"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("0755", 755),
        ("0o17", 15),
        ("0x1F", 31),
        ("-12", -12),
        ("~", None),
        ("null", None),
        ("", None),
        ('"8"', "8"),
        ("'true'", "true"),
        ("2x8", "2x8"),
        ("8xH200", "8xH200"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        (".inf", float("inf")),
        ("مرحبا", "مرحبا"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = tree_of(f"key: {text}\n").plain()["key"]
    assert read == value
    assert type(read) is type(value)


def test_spans_of_keys_and_values() -> None:
    tree = tree_of("name: x\n# تعليق\nlora:\n  rank: 16  # comment\n  targets: [a, 'b c']\n")
    rank = tree.at("lora.rank")
    assert rank is not None
    assert rank.key_span is not None
    assert (rank.span.line, rank.span.column, rank.span.text) == (4, 9, "16")
    assert (rank.key_span.line, rank.key_span.column, rank.key_span.text) == (4, 3, "rank")
    node, rest = tree.find(("lora", "targets", 1))
    assert rest == ()
    assert node.span.text == "'b c'"


def test_a_block_ends_with_its_last_line() -> None:
    tree = tree_of("a:\n  b: 1\n\n\nc: 2\n")
    node = tree.at("a")
    assert node is not None
    assert node.span.text == "b: 1"


def test_find_reports_what_is_missing() -> None:
    tree = tree_of("lora: {rank: 8}\n")
    node, rest = tree.find(("lora", "alpha", "x"))
    assert rest == ("alpha", "x")
    assert node.plain() == {"rank": 8}


def test_an_alias_bomb_ends_within_a_second() -> None:
    lines = ["a: &a [" + ", ".join(["x"] * 10) + "]"]
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True):
        lines.append(f"{name}: &{name} [" + ", ".join([f"*{before}"] * 10) + "]")
    sink = Sink()
    started = time.monotonic()
    assert parse(SourceFile(Path("bomb.yaml"), "bomb.yaml", "\n".join(lines)), sink) is None
    assert time.monotonic() - started < 1
    assert [d.code for d in sink.diagnostics] == ["HC006"]


def test_a_recursive_alias_is_refused() -> None:
    sink = Sink()
    assert parse(SourceFile(Path("s.yaml"), "s.yaml", "a: &a [*a]\n"), sink) is None
    assert {d.code for d in sink.diagnostics} <= {"HC002", "HC006"}


def test_deep_nesting_is_refused() -> None:
    sink = Sink()
    assert parse(SourceFile(Path("s.yaml"), "s.yaml", "a: " + "[" * 200 + "]" * 200), sink) is None
    assert sink.error_count == 1


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the reader raise: it gives a tree, or diagnostics with a place."""
    sink = Sink()
    tree = parse(SourceFile(Path("s.yaml"), "s.yaml", text), sink)
    assert (tree is None) == (sink.error_count > 0)
    for diagnostic in sink.diagnostics:
        span = diagnostic.primary.span
        assert 0 <= span.start <= span.end <= len(text)
        assert span.line >= 1
