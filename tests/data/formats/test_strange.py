"""Any place of a row may hold anything: no format breaks over it, and quick and careful readers agree about it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgsc.contract.outcome import StepError
from higgsc.data.convert import OutputFormat, convert
from higgsc.data.formats import pieces, reading
from higgsc.data.formats.reading import FORMATS, read_records
from higgsc.data.records import Record, Rejected
from higgsc.data.samples import SourceFile
from higgsc.data.structure import check_structure

REQUEST = "Please generate speech for given text in reference audio's voice: "
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "formats"
CHATML = [
    json.loads(line) for line in (FIXTURES / "chatml-lines.jsonl").read_text("utf-8").splitlines() if line[1] == '"'
]
CHATML[0]["messages"][1]["content"][2]["text"] = REQUEST + CHATML[0]["messages"][2]["content"][0]["text"]
FIVE = next(row for row in CHATML if len(row["messages"]) == 4)
SAID = {"type": "text", "text": FIVE["messages"][3]["content"]}
ANSWER = {"role": "assistant", "content": [SAID, CHATML[0]["messages"][-1]["content"][1]]}
CHATML.append({**FIVE, "id": "5", "messages": [*FIVE["messages"], ANSWER]})
CANONICAL: list[dict[str, Any]] = [
    {"id": "a", "target": {"text": "t", "audio": {"path": "a.wav", "offset": 1.0, "duration": 2}}, "speaker": "noor",
     "references": [{"text": "r", "audio": {"path": "b.wav"}}], "system": "s", "scene": "room", "extra": {"x": [1]}},
    {"id": "b", "target": {"text": "t", "audio": {"path": "a.wav"}}, "origin": "x:3"},
    {"target": {"text": "prompt"}, "references": []},
]  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
TEXTS = (
    "", " ", "\ud800", "<|scene_desc_start|>x<|scene_desc_end|>", "a\nb", "x <|eot_id|>", "../../x.wav", "/etc/passwd",
    "http://x/a.wav", "a\0b", "c:d", "x" * 2_001, f"{REQUEST}x",
)  # fmt: skip
STRANGE = JSON | st.sampled_from((*TEXTS, -1, 1e400, 10**30))


def places_of(sample: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Every container in a sample, with every key of it."""
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [sample]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        places += [(container, key) for key in keys]
        waiting += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return places


@st.composite
def lines(draw: st.DrawFn, rows: list[dict[str, Any]]) -> bytes:
    """A line: a usual row, or one of which one place holds something else or nothing."""
    sample = copy.deepcopy(draw(st.sampled_from(rows)))
    places = places_of(sample)
    match draw(st.sampled_from(["usual", "usual", "strange", "without", "blank", "broken"])):
        case "strange":
            container, key = draw(st.sampled_from(places))
            container[key] = draw(STRANGE)
        case "without":
            container, key = draw(st.sampled_from(places))
            del container[key]
        case "blank":
            return b" "
        case "broken":
            return json.dumps(sample).encode()[: draw(st.integers(1, 60))]
    line = json.dumps(sample, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return line.replace(b"calm", b"\xff") if draw(st.booleans()) else line


@contextmanager
def carefully() -> Iterator[None]:
    """Without the quick readers."""
    before = reading.FORMATS
    try:
        reading.FORMATS = {name: dataclasses.replace(form, fast=None) for name, form in before.items()}
        yield
    finally:
        reading.FORMATS = before


def told(path: Path, form: str) -> list[Any]:
    return [(line, shown(read), read.id) for line, read in read_records(path, form, root=path.parent)]


def shown(read: Record | Rejected) -> Any:
    if isinstance(read, Rejected):
        return read.reason
    try:
        return json.loads(msgspec.json.encode(read))
    except UnicodeEncodeError:  # half a surrogate pair in what is kept as it stands
        return repr(read)


OTHERS = {
    name: [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text("utf-8").splitlines()]
    for name in ("conversations", "manifest", "mixed", "ms-swift", "nemo", "paired")
}
OTHERS["train-higgs-audio"] = json.loads((FIXTURES / "train-higgs-audio.json").read_text("utf-8"))["samples"]
OTHERS["ljspeech"] = [{"line": line} for line in (FIXTURES / "ljspeech.csv").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("form", sorted({*FORMATS} - {"chatml", "canonical"}))
@settings(deadline=None, max_examples=60)  # files on a busy disk
@given(data=st.data())
def test_no_row_breaks_a_format(tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject) -> None:
    """Every row becomes a record or has a reason on one line, and what can be read is the same after a round trip."""
    drawn = [line for line in data.draw(st.lists(lines(OTHERS[form]), min_size=1, max_size=3)) if line.strip()]
    good = json.dumps(OTHERS[form][0]).encode()
    if form == "ljspeech":
        plain = [line[10:-2] if line[:9] == b'{"line": ' else line for line in (good, *drawn)]
        written = b"\n".join(line if line.strip() else b"?" for line in plain)
    elif form == "train-higgs-audio":
        written = b'{"samples": [%b]}' % b", ".join((good, *drawn))
    else:
        written = b"\n".join((good, *drawn))
    folder = tmp_path_factory.mktemp("strange")
    (folder / "transcripts").mkdir()
    (folder / "transcripts" / "one.txt").write_text("said")
    (folder / "a").write_bytes(written)
    try:
        reads = list(read_records(folder / "a", form, root=folder))
    except StepError:
        assert form == "train-higgs-audio", "nothing can be found again after broken JSON, but on another line"
        return
    assert len(reads) == 1 + len(drawn)
    assert isinstance(reads[0][1], Record)
    for line, read in reads:
        assert 1 <= line <= 1 + len(drawn)
        if isinstance(read, Rejected):
            assert read.reason
            assert "\n" not in read.reason
    first, back = folder / "b.jsonl", folder / "d.jsonl"
    convert(SourceFile(path=folder / "a", format=form), first)
    there = convert(SourceFile(path=first, format="canonical"), folder / "c.jsonl", to="chatml")
    convert(SourceFile(path=folder / "c.jsonl", format="chatml"), back)
    if not there.rejected:  # a field that is kept as it stands may have the name of one of ChatML's
        assert list(map(json.loads, first.open("rb"))) == list(map(json.loads, back.open("rb")))


def agree(path: Path, form: str) -> None:
    source = SourceFile(path=path, format=form)
    quick, found = told(path, form), check_structure((source,), root=path.parent, roots=())
    with carefully():
        careful, slowly_found = told(path, form), check_structure((source,), root=path.parent, roots=())
    assert quick == careful
    for name in ("samples", "bad", "problems", "speakers", "characters", "hashes"):
        assert getattr(found, name) == getattr(slowly_found, name), name


@pytest.mark.parametrize("form", ["chatml", "canonical"])
def test_every_string_of_a_row_may_be_any_of_the_texts_that_matter(tmp_path: Path, form: str) -> None:
    rows = CHATML if form == "chatml" else CANONICAL
    path = tmp_path / "a.jsonl"
    looked_at = 0
    for row in (rows[0], rows[-1 if form == "chatml" else 1]):
        for number, (before, key) in enumerate(places_of(row)):
            if not isinstance(before[key], str):
                continue
            for text in TEXTS:
                other = copy.deepcopy(row)
                places_of(other)[number][0][key] = text
                path.write_text(f"{json.dumps(rows[0])}\n{json.dumps(other)}\n")
                agree(path, form)
                looked_at += 1
    assert looked_at > 100


@pytest.mark.parametrize("form", ["chatml", "canonical"])
@settings(deadline=None, max_examples=60)  # files on a busy disk
@given(data=st.data())
def test_the_quick_reader_agrees_with_the_careful_one(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    rows = CHATML if form == "chatml" else CANONICAL
    good = json.dumps(rows[0]).encode()
    written = [good, *data.draw(st.lists(lines(rows), min_size=1, max_size=4))]
    folder = tmp_path_factory.mktemp("quick")
    path = folder / "a.jsonl"
    path.write_bytes(b"\n".join(written) + b"\n")
    agree(path, form)
    source = SourceFile(path=path, format=form)
    written_by: list[bytes] = []
    for to in OutputFormat.__args__:  # type: ignore[attr-defined]
        made = convert(source, folder / "b.jsonl", to=to)
        written_by.append((folder / "b.jsonl").read_bytes())
        assert written_by[-1].decode().count("\n") == made.written
        with carefully():
            convert(source, folder / "b.jsonl", to=to)
        # Numbers in what is kept as it stands are written as they were: 1e5, and not 100000.0.
        after = (folder / "b.jsonl").read_bytes()
        assert list(map(json.loads, after.splitlines())) == list(map(json.loads, written_by[-1].splitlines()))


@pytest.mark.parametrize("form", ["chatml", "canonical"])
@settings(deadline=None, max_examples=150)  # files on a busy disk
@given(data=st.data())
def test_the_quick_reader_agrees_with_the_careful_one_about_arrays(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """Also about what is broken, and on which line; pieces are so small that rows lie across their ends."""
    rows = CHATML if form == "chatml" else CANONICAL
    indent = data.draw(st.sampled_from([None, 0, 1, 2]))
    layout = data.draw(st.sampled_from(["together", "one a line", "indented"]))
    drawn = [line for line in data.draw(st.lists(lines(rows), max_size=5)) if line.strip()]
    written = [json.dumps(rows[0]).encode(), *drawn, json.dumps(rows[-1]).encode()]
    if layout == "one a line":
        content = b"[\n" + b",\n".join(written) + b"\n]\n"
    elif layout == "together":
        content = b"[" + data.draw(st.sampled_from([b", ", b",", b" ,"])).join(written) + b"]"
    else:
        try:
            content = json.dumps([json.loads(one) for one in written], indent=indent).encode()
        except ValueError:
            content = b"[" + b"\n,\n".join(written) + b"]"
    if data.draw(st.booleans()):
        content = b"\xef\xbb\xbf \r\n" + content.replace(b"\n", b"\r\n")
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_bytes(content[: data.draw(st.sampled_from([None, -1, -20, len(content) // 2]))])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "_PIECE", data.draw(st.sampled_from([1, 100, 1000, 1 << 16])))
        quick = told_or_refused(path, form)
    with carefully():
        assert quick == told_or_refused(path, form)


def told_or_refused(path: Path, form: str) -> Any:
    try:
        return told(path, form)
    except StepError as error:
        return str(error), error.line, error.path


@pytest.mark.parametrize("indent", [None, 2])
def test_one_bad_row_does_not_leave_an_array_to_the_careful_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None
) -> None:
    array = [{**CHATML[0], "id": f"s-{number}"} for number in range(1000)]
    array[300] = {**array[300], "messages": []}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(array, indent=indent))
    asked: list[str] = []
    record = FORMATS["chatml"].record

    def counting(row: Any, name: str, file: Path) -> Record:
        asked.append(name)
        return record(row, name, file)

    monkeypatch.setattr(reading, "FORMATS", {"chatml": dataclasses.replace(FORMATS["chatml"], record=counting)})
    reads = list(read_records(path, "chatml", root=tmp_path))
    assert [read.id for _, read in reads] == [f"s-{number}" for number in range(1000)]
    assert [number for number, (_, read) in enumerate(reads) if isinstance(read, Rejected)] == [300]
    assert asked == ["a-000300", "a-000999"], "the bad row, and the last one of the array"


@pytest.mark.parametrize("to", OutputFormat.__args__)  # type: ignore[attr-defined]
def test_rows_written_together_are_those_written_one_by_one(tmp_path: Path, to: OutputFormat) -> None:
    """Of every shape, with names as seen from another folder; what is not kept of a part is not written."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path, output = tmp_path / "in" / "a.jsonl", tmp_path / "out" / "b.jsonl"
    for row in CHATML:
        other = copy.deepcopy(row)
        for container, key in places_of(other):
            if key == "audio_url":
                container["raw_audio"] = ""
        other |= {"id": "other", "origin": "elsewhere:7"}
        path.write_text("".join(json.dumps({**one, "start_index": 0}) + "\n" for one in (row, other)))
        convert(SourceFile(path=path, format="chatml"), output, to=to)
        written = output.read_text()
        with carefully():
            convert(SourceFile(path=path, format="chatml"), output, to=to)
        assert list(map(json.loads, written.splitlines())) == list(map(json.loads, output.read_text().splitlines()))
        assert "../in/" in written
        assert "raw_audio" not in written


@pytest.mark.parametrize("form, rows", [("chatml", CHATML), ("canonical", CANONICAL)])
def test_the_quick_reader_reads_the_usual_rows(form: str, rows: list[dict[str, Any]]) -> None:
    """Otherwise the test above would hold for a reader that reads nothing."""
    make = FORMATS[form].fast
    assert make is not None
    read = make()
    usual = [row for row in rows if len(row.get("messages", [])) in (0, 3, 5) and ("target" not in row or "id" in row)]
    assert len(usual) >= 2
    for row in usual:
        line = json.dumps(row).encode()
        many = read([line, line])
        assert many is not None
        assert [one.origin for one in many.records(["x:1", "x:2"])] == [row.get("origin", f"x:{n}") for n in (1, 2)]


def test_what_is_kept_as_it_stands_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(CHATML[0]).encode()
    path.write_bytes(good + b"\n" + good.replace(b'"misc": {', b'"misc": {"note": "\xff", ') + b"\n")
    (_, first), (line, second) = read_records(path, "chatml", root=tmp_path)
    assert isinstance(first, Record)
    assert isinstance(second, Rejected)
    assert (line, second.reason) == (2, "no JSON object on this line: not UTF-8")


@pytest.mark.parametrize("where", ["", "data/"])
def test_audio_by_its_full_path_is_sound_where_it_may_lie(tmp_path: Path, where: str) -> None:
    """Also at the speed of whole pieces; a name that only starts like an allowed folder is refused."""
    (tmp_path / "real" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "link" / "data" / "a.jsonl"
    homes = [str(tmp_path / "link"), str(tmp_path / "real"), f"{tmp_path / 'link'}er"]
    for number, home in enumerate(homes):
        row = copy.deepcopy(CANONICAL[0])
        row["target"]["audio"]["path"] = f"{home}/{where}x.wav"
        path.write_text(json.dumps(row) + "\n")
        found = check_structure((SourceFile(path=path),), root=tmp_path / "link", roots=())
        assert found.bad == (number == 2), home


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "in.jsonl").write_text(json.dumps(CHATML[0]) + "\n", "utf-8")
    source = SourceFile(path=folder / "in.jsonl", format="chatml")
    with pytest.raises(StepError, match=r"'caf\\udce9/in.jsonl', holds signs that cannot be written"):
        convert(source, tmp_path / "out.jsonl", to="chatml")
    assert not (tmp_path / "out.jsonl").exists()
    assert convert(source, folder / "out.jsonl", to="chatml").written == 1
