"""JSON arrays and JSONL: every element with its line, and what is broken with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.formats.objects import Located, read_objects

VALUES = st.dictionaries(st.text(max_size=3), st.lists(st.integers() | st.text(max_size=4), max_size=3), max_size=3)


@given(samples=st.lists(VALUES, min_size=1, max_size=6), indent=st.sampled_from([None, 0, 2]))
def test_an_array_gives_its_elements_and_their_lines(
    tmp_path_factory: pytest.TempPathFactory, samples: list[dict[str, Any]], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    content = json.dumps(samples, indent=indent, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf\r\n" + content.replace("\n", "\r\n").encode())
    found = list(read_objects(path))
    assert [element.value for element in found] == samples
    line = 2 if indent is None else 3
    for element, sample in zip(found, samples, strict=True):
        assert element.line == line
        if indent is not None:
            line += json.dumps(sample, indent=indent).count("\n") + 1


def test_lines_are_counted_with_blank_ones_and_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xe2\x80\xa8"}\r\n{"a": \n[NaN]\n{"a": "\xff"}\n' + b"[" * 9**5)
    assert list(read_objects(path)) == [
        Located(1, {"a": 1}),
        Located(3, {"a": "\u2028"}),
        Located(4, problem="no JSON object on this line: expecting value"),
        Located(5, problem="no JSON object on this line: NaN is not JSON"),
        Located(6, problem="no JSON object on this line: not UTF-8"),
        Located(7, problem="no JSON object on this line: nested too deeply"),
    ]


@pytest.mark.parametrize(
    "content, complaint, line",
    [
        (b"", "the data file is empty", None),
        (b" \n\n", "the data file is empty", None),
        (b" [ \n ] ", "the data file holds no samples", None),
        (b"audio,text\n", "neither JSON nor JSONL: it starts with b'a'", None),
        (b'[\n{"a": 1},\n{"a": 2}\n{"a": 3}]', r"broken JSON: expecting ',' or '\]', in the sample .* line 3", 4),
        (b'[\n{"a": 1},\n{"a":\n oops}]', "broken JSON: expecting value, in the sample that starts on line 3", 4),
        (b'[\n{"a": 1}', r"broken JSON: expecting ',' or '\]'", 2),
        (b"[\n1,\n]", "broken JSON: expecting value", 3),
        (b"[1,\nInfinity]", "broken JSON: Infinity is not JSON", 2),
        (b"[" * 9**5, "broken JSON: nested too deeply", 1),
        (b'[1,\n"\xff"]', "not UTF-8", 2),
        (b"[1]\n{}", "more text after the array's end: '{}'", 2),
    ],
)
def test_a_broken_file_is_refused_with_its_line(
    tmp_path: Path, content: bytes, complaint: str, line: int | None
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(StepError, match=complaint) as caught:
        list(read_objects(path))
    assert (caught.value.path, caught.value.line) == (path, line)
    assert caught.value.code == ExitCode.BAD_DATA


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(StepError) as caught:
            list(read_objects(path))
        assert caught.value.code == ExitCode.MISSING_INPUT
        assert caught.value.path == path
