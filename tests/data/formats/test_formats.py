"""Every format against its fixture: what is read, and what is refused for which reason.

After a change that is meant: `python tests/data/formats/test_formats.py` writes the expected files again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.convert import convert
from higgsc.data.formats.reading import FORMATS, detect, read_records
from higgsc.data.formats.turns import REQUEST
from higgsc.data.records import Audio, Record, Rejected, Utterance
from higgsc.data.samples import SourceFile
from higgsc.spec.data import Format

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "formats"
INPUTS = sorted(path for path in FIXTURES.iterdir() if path.is_file() and ".expected" not in path.name)


def outcome(path: Path) -> str:
    """What becomes of a data file: its format with the evidence, each record, each rejected row."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        form, evidence = detect(path)
        made = convert(SourceFile(path=path), Path(folder) / "out.jsonl")
        lines = [f"{form.name}: {evidence}", (Path(folder) / "out.jsonl").read_text("utf-8")]
        lines += [made.rejects.read_text("utf-8")] if made.rejects else []
    return "\n".join(lines)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name)
def test_a_format_is_read_as_expected(path: Path) -> None:
    assert outcome(path) == path.with_name(f"{path.name}.expected").read_text("utf-8")


def test_every_format_has_a_fixture_and_a_name_in_the_spec() -> None:
    assert {detect(path)[0].name for path in INPUTS} | {"canonical"} == set(FORMATS)
    assert {"auto", *FORMATS} == set(Format.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name)
def test_a_round_trip_loses_nothing(path: Path, tmp_path: Path) -> None:
    for name in ("out", "chatml", "back"):
        (tmp_path / name).mkdir()
    shutil.copytree(FIXTURES / "transcripts", tmp_path / "transcripts")
    source = Path(shutil.copy(path, tmp_path))
    convert(SourceFile(path=source), tmp_path / "out" / "a.jsonl")
    convert(SourceFile(path=tmp_path / "out" / "a.jsonl"), tmp_path / "chatml" / "b.jsonl", to="chatml")
    convert(SourceFile(path=tmp_path / "chatml" / "b.jsonl"), tmp_path / "back" / "c.jsonl")
    before = [json.loads(line) for line in (tmp_path / "out" / "a.jsonl").open()]
    after = [json.loads(line) for line in (tmp_path / "back" / "c.jsonl").open()]
    assert after == before
    assert not list(tmp_path.rglob("*.rejected.jsonl"))[1:]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip) | st.sampled_from(
    [f"{REQUEST} x", "he said: x", REQUEST, "a\nb", " x "]
)
NAME = st.text(st.sampled_from("ab-é1"), min_size=1, max_size=5)
AUDIO = st.builds(
    Audio,
    st.text(st.sampled_from("a/.b é"), min_size=1, max_size=6).filter(
        lambda name: name.strip(" ./") and name[0] != "/"
    ),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0.1, 1e6),
)
RECORDS = st.builds(
    Record,
    id=NAME,
    speaker=st.just("") | NAME,
    system=st.none() | TEXT,
    scene=st.none() | TEXT,
    references=st.lists(st.builds(Utterance, TEXT, AUDIO), max_size=3).map(tuple),
    target=st.builds(Utterance, TEXT, AUDIO),
    extra=st.none() | st.dictionaries(st.sampled_from(["misc", "mood"]), st.integers() | NAME, min_size=1),
    origin=st.just("x:1"),
)


@settings(deadline=None)  # files on a busy disk
@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_any_record_survives_chatml(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    folder = tmp_path_factory.mktemp("trip")
    encode = msgspec.json.encode
    (folder / "a.jsonl").write_bytes(b"\n".join(map(encode, records)))
    convert(SourceFile(path=folder / "a.jsonl", format="canonical"), folder / "b.jsonl", to="chatml")
    convert(SourceFile(path=folder / "b.jsonl", format="chatml"), folder / "c.jsonl")
    assert (folder / "c.jsonl").read_bytes().splitlines() == list(map(encode, records))


def samples() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / "chatml-lines.jsonl").read_text().splitlines() if line[1] == '"']


@pytest.mark.parametrize(
    "row, names",
    [
        ({"audio_filepath": "a.wav", "text": "t", "ref_audio": "b.wav", "ref_text": "r"}, ("manifest", "paired")),
        ({"conversations": [], "reference_audio": "b.wav", "ref_text": "r"}, ("conversations", "paired")),
    ],
)
def test_what_fits_two_formats_is_not_guessed(tmp_path: Path, row: dict[str, Any], names: tuple[str, ...]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(StepError, match="the format is ambiguous") as caught:
        detect(path)
    assert all(name in caught.value.message for name in names)
    assert (caught.value.line, caught.value.code) == (1, ExitCode.BAD_DATA)
    if "paired" in names and "text" in row:
        ((_, read),) = read_records(path, "paired", root=tmp_path)
        assert isinstance(read, Record)


@pytest.mark.parametrize("last, form", [("said", "mixed"), (f"{REQUEST} said", "chatml"), ({"type": "text"}, "chatml")])
def test_a_user_turn_without_a_request_is_mixed(tmp_path: Path, last: Any, form: str) -> None:
    path = tmp_path / "a.jsonl"
    content = ["ref", {"type": "audio", "audio_url": "a.wav"}, last]
    path.write_text(json.dumps({"messages": [{"role": "user", "content": content}]}))
    assert detect(path)[0].name == form


def test_what_cannot_be_printed_is_told_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(samples()[0]) + '\n{"messages": [{"role": "a\\n\\ud800", "content": "x"}]}\n')
    made = convert(SourceFile(path=path), tmp_path / "b.jsonl")
    assert made.rejects is not None
    assert "unknown order of turns: a\\n\\ud800;" in json.loads(made.rejects.read_text("utf-8"))["cause"]
    path.write_text('{"messages": [{"role": "a\\n\\ud800", "content": "x"}]}\n')
    assert detect(path)[1] == "a list `messages` with the roles a\\n\\ud800"


def test_mixed_formats_in_one_file_name_the_other_format(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [json.dumps(samples()[0]), json.dumps({"audio_filepath": "a.wav", "text": "t"})]
    path.write_text("\n".join(rows))
    (_, first), (line, second) = read_records(path, "auto", root=tmp_path)
    assert isinstance(first, Record)
    assert isinstance(second, Rejected)
    assert line == 2
    assert "looks like manifest (`audio_filepath` and `text`), and the file is read as chatml" in second.reason


def test_one_bad_row_in_many_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(samples()[0])
    with path.open("w") as stream:
        stream.writelines(f"{good[:-1] if number == 7_123 else good}\n" for number in range(10_000))
    made = convert(SourceFile(path=path), tmp_path / "b.jsonl")
    assert (made.written, made.rejected) == (9_999, 1)
    assert made.rejects is not None
    assert json.loads(made.rejects.read_text())["place"] == "a.jsonl:7124"


def test_byte_order_mark_line_ends_and_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(samples()[0], ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{good}\r\n\r\n{good}\r\n".encode() + f"{good}\n".encode("cp1256", "replace"))
    (one, first), (three, second), (four, third) = read_records(path, "auto", root=tmp_path)
    assert (one, three, four) == (1, 3, 4)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.id, first.target, first.references) == (second.id, second.target, second.references)
    assert isinstance(third, Rejected)
    assert "not UTF-8" in third.reason
    path.write_bytes(good.encode("utf-16"))
    with pytest.raises(StepError, match="is in UTF-16, not in UTF-8"):
        detect(path)


def test_a_transcript_is_read_from_beside_the_data_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    (tmp_path / "link.txt").symlink_to("/etc/hostname")
    names = ("../../etc/hostname", "link.txt", "/etc/hostname")
    path.write_text(json.dumps({"samples": [{"audio_file": "a.wav", "transcript_file": name} for name in names]}))
    reasons = [read.reason for _, read in read_records(path, "auto", root=tmp_path) if isinstance(read, Rejected)]
    assert len(reasons) == 3
    assert "lies outside" in reasons[0]
    assert "a link leads out of the data's folders" in reasons[1]
    assert "lies outside" in reasons[2]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(StepError, match="not a regular file"):
        detect(tmp_path / "a.jsonl")


@pytest.mark.parametrize("depth", [300, 900, 100_000])
@pytest.mark.parametrize("form", ["chatml", "canonical"])
def test_deep_nesting_is_a_bad_row_or_none_never_the_end(tmp_path: Path, form: str, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    good = '{"id": "x", "target": {"text": "t"}}' if form == "canonical" else json.dumps(samples()[0])
    key = "extra" if form == "canonical" else "misc"
    (tmp_path / "a.jsonl").write_text(f'{good}\n{good[:-1]}, "{key}": {{"a": {deep}}}}}\n{good}\n')
    made = convert(SourceFile(path=tmp_path / "a.jsonl", format=form), tmp_path / "b.jsonl")
    assert (made.written + made.rejected, made.written >= 2) == (3, True)


def test_an_array_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    sample = samples()[0]
    many = [sample | {"id": f"{number:05d}", "note": "\u2028é" * (number % 7)} for number in range(4_000)]
    path.write_text(json.dumps(many, ensure_ascii=False, indent=1), "utf-8")
    read = list(read_records(path, "auto", root=tmp_path))
    assert [record.id for _, record in read] == [one["id"] for one in many]
    lines = path.read_text("utf-8").split("\n")
    assert all(lines[line - 1] == " {" for line, _ in read)
    path.write_text(json.dumps(many)[:-9], "utf-8")
    with pytest.raises(StepError, match="broken JSON"):
        list(read_records(path, "auto", root=tmp_path))


if __name__ == "__main__":
    for fixture in INPUTS:
        fixture.with_name(f"{fixture.name}.expected").write_text(outcome(fixture), "utf-8")
