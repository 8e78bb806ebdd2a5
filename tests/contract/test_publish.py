"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import publish_folder


def write(folder: Path, text: str) -> None:
    with publish_folder(folder, marker="mark") as draft:
        assert not (folder / text).exists()
        (draft / "mark").write_text(text)
        (draft / "below").mkdir()
        (draft / "below" / text).write_text(text)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_appears_whole(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "out", "a")
    assert files(tmp_path) == {"deep/out/mark", "deep/out/below/a"}


def test_replaces_its_own_kind_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path / "out", "a")
    write(tmp_path / "out", "b")
    assert files(tmp_path) == {"out/mark", "out/below/b"}


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "a")
    assert files(tmp_path) == {"out/mark", "out/below/a"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), ValueError(), StepError("no")])
def test_nothing_is_left_and_the_old_one_stays(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with publish_folder(tmp_path / "out", marker="mark") as draft:
            (draft / "mark").write_text("b")
            raise error

    write(tmp_path / "out", "a")
    with pytest.raises(type(error)):
        fail()
    assert files(tmp_path) == {"out/mark", "out/below/a"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    (tmp_path / ".out.replaced").mkdir()
    write(tmp_path / "out", "a")
    assert files(tmp_path) == {"out/mark", "out/below/a"}


@pytest.mark.parametrize("folder", [True, False])
def test_other_things_are_never_replaced(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "out"
    if folder:
        out.mkdir()
        (out / "thesis").write_text("years of work")
    else:
        out.write_text("years of work")
    before = files(tmp_path)
    with pytest.raises(StepError) as raised:
        write(out, "a")
    assert raised.value.code == ExitCode.USAGE
    assert files(tmp_path) == before


def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StepError) as raised:
        write(tmp_path / "file" / "out", "a")
    assert raised.value.code == ExitCode.IO
    assert str(tmp_path) in str(raised.value)
