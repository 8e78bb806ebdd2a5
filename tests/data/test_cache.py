"""The cache of codes: nothing that was finished is lost, nothing that is damaged is believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.cache import CodeCache, Part, Stamp

RECIPE = {"codec": "c", "rate": 24_000}


def part(number: int, offset: float | None = None) -> Part:
    return Part(f"{number:064x}", offset, None)


def stamp(number: int) -> Stamp:
    return Stamp(f"/data/{number}.wav", 100 + number, str(number))


def codes(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1024, (number + 1, 8)).astype(np.uint16)


def fill(folder: Path, *numbers: int) -> None:
    with CodeCache(folder, RECIPE) as cache:
        for number in numbers:
            cache.add(part(number), stamp(number), codes(number), samples=960 * (number + 1))


def log_of(folder: Path) -> Path:
    (path,) = folder.glob("*/*.codes")
    return path


def found(folder: Path, among: range) -> list[int]:
    """The parts that are there, all right in every byte."""
    cache = CodeCache(folder, RECIPE)
    there = []
    for number in among:
        if (entry := cache.entry(part(number))) is not None:
            np.testing.assert_array_equal(cache.codes(entry), codes(number))
            assert (entry.frames, entry.samples) == (number + 1, 960 * (number + 1))
            assert cache.content(stamp(number)) == part(number).audio
            there.append(number)
    return there


def test_what_is_added_is_found_again_here_and_by_others(tmp_path: Path) -> None:
    with CodeCache(tmp_path, RECIPE) as cache:
        for number in range(3):
            entry = cache.add(part(number), stamp(number), codes(number), samples=960 * (number + 1))
            np.testing.assert_array_equal(cache.codes(entry), codes(number))
            assert found(tmp_path, range(9)) == list(range(number + 1)), "also while the process still writes"
        np.testing.assert_array_equal(cache.codes(cache.entry(part(0))), codes(0))
        assert cache.entry(part(0, offset=1.0)) is None
    assert CodeCache(tmp_path, {**RECIPE, "codec": "d"}).entry(part(0)) is None


def test_reading_leaves_nothing_behind(tmp_path: Path) -> None:
    CodeCache(tmp_path / "codes", RECIPE).close()
    assert not (tmp_path / "codes").exists()


def test_a_log_that_is_cut_anywhere_keeps_its_whole_records(tmp_path: Path) -> None:
    fill(tmp_path, *range(4))
    log = log_of(tmp_path)
    content = log.read_bytes()
    ends = [len(content)]
    for number in (3, 2, 1, 0):
        fill(tmp_path / str(number), *range(number))
        ends.append(log_of(tmp_path / str(number)).stat().st_size if number else 0)
    for cut in sorted(
        {*range(0, len(content), 11), *ends, *(end - 1 for end in ends[:-1]), *(end + 1 for end in ends[1:])}
    ):
        log.write_bytes(content[:cut])
        assert found(tmp_path, range(4)) == list(range(sum(end <= cut for end in ends) - 1))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cache")
    fill(folder, *range(3))
    log = log_of(folder)
    content = bytearray(log.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    log.write_bytes(content)
    there = found(folder, range(3))
    assert len(there) < 3
    assert there == list(range(len(there)))


def test_after_a_torn_record_the_next_process_writes_a_log_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, 0, 1)
    log = log_of(tmp_path)
    log.write_bytes(log.read_bytes()[:-1])
    fill(tmp_path, 1, 2)
    assert found(tmp_path, range(3)) == [0, 1, 2]


def test_two_that_encode_the_same_at_once_do_no_harm(tmp_path: Path) -> None:
    with CodeCache(tmp_path, RECIPE) as one, CodeCache(tmp_path, RECIPE) as two:
        for cache in (one, two):
            cache.add(part(5), stamp(5), codes(5), samples=960 * 6)
        two.add(part(6), stamp(6), codes(6), samples=960 * 7)
        one.refresh()
        assert len(one) == len(two) == 2
    assert found(tmp_path, range(9)) == [5, 6]


def test_a_copy_is_known_by_its_content_and_then_by_its_looks(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    copy = Stamp("/elsewhere/copy.wav", 101, "7")
    with CodeCache(tmp_path, RECIPE) as cache:
        assert cache.content(copy) is None
        cache.add_content(part(1), copy)
        cache.add_content(part(1), copy)
    cache = CodeCache(tmp_path, RECIPE)
    assert cache.content(copy) == part(1).audio
    assert len(cache) == 1


def test_the_looks_of_a_file_that_has_just_changed_are_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"1")
    assert not Stamp.of(file).settled
    with CodeCache(tmp_path / "codes", RECIPE) as cache:
        cache.add(part(1), Stamp.of(file), codes(1), samples=960)
    assert CodeCache(tmp_path / "codes", RECIPE).content(Stamp.of(file)) is None
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert Stamp.of(file).settled
    assert Stamp("s3://b/a.wav", 1, "ETag abc").settled


def test_a_disk_that_is_full_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: object) -> int:
        raise OSError(28, "No space left on device")

    with CodeCache(tmp_path, RECIPE) as cache:
        cache.add(part(0), stamp(0), codes(0), samples=960)
        monkeypatch.setattr("higgsc.data.cache.os.write", full)
        with pytest.raises(StepError, match="cannot keep codes: No space left") as caught:
            cache.add(part(1), stamp(1), codes(1), samples=960)
        monkeypatch.undo()
    assert caught.value.code == ExitCode.IO
    assert "data.prepare.cache" in str(caught.value.help)
    assert found(tmp_path, range(2)) == [0]
