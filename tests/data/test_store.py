"""The store: what was written is read back, whole or not at all, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.layout import Segments
from higgsc.data.store import Store
from higgsc.data.store_writer import StoreWriter

FILES = {
    "codes.u16",
    "text.u32",
    "clips.npy",
    "samples.npy",
    "samples.jsonl",
    "rejected.jsonl",
    "store.json",
}


def write(path: Path, samples: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Write a store of random samples, the first clip of which all of them share; returns what is in it."""
    random = np.random.default_rng(seed)
    written = []
    with StoreWriter(path, made_by={"codec": "c", "seed": seed}) as writer:
        shared = random.integers(0, 1024, (4, 8)).astype(np.uint16)
        first = writer.add_clip(shared, audio=bytes(32))
        for number in range(samples):
            target = random.integers(0, 1024, (number + 1, 8)).astype(np.uint16)
            ids = [random.integers(0, 128_256, length) for length in (number + 2, 3, 2)]
            segments = Segments(prefix=ids[0], middle=ids[1], suffix=ids[2])
            record = {"id": f"عينة-{number}", "target_text": "نص\u2028"}
            speaker = "ab"[number % 2]
            writer.add_sample(
                segments,
                reference=first,
                target=writer.add_clip(target, audio=bytes([number] * 32)),
                speaker=speaker,
                validation=number % 3 == 1,
                record=record,
            )
            written.append(
                {"segments": segments, "reference": shared, "target": target, "record": record, "speaker": speaker}
            )
        writer.reject({"id": "bad", "line": 3, "reason": "no target audio"})
    return written


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write(tmp_path / "store")
    store = Store.open(tmp_path / "store", verify=True)
    assert {path.name for path in (tmp_path / "store").iterdir()} == FILES
    assert len(store) == 5
    assert store.train.tolist() == [0, 2, 3]
    assert store.validation.tolist() == [1, 4]
    assert store.speakers == ["a", "b"]
    assert store.made_by == {"codec": "c", "seed": 0}
    assert store.counts == {
        "samples": 5,
        "train": 3,
        "validation": 2,
        "rejected": 1,
        "clips": 6,
        "frames": 4 + 15,
        "text_ids": 2 + 3 + 4 + 5 + 6 + 5 * 5,
    }
    assert store.target_frames.tolist() == [1, 2, 3, 4, 5]
    for number, expected in enumerate(written):
        sample = store.sample(number)
        for part in ("prefix", "middle", "suffix"):
            np.testing.assert_array_equal(getattr(sample, part), getattr(expected["segments"], part))
            assert getattr(sample, part).dtype == np.int64
        for clip in ("reference", "target"):
            np.testing.assert_array_equal(getattr(sample, clip), expected[clip])
            assert getattr(sample, clip).dtype == np.uint16
        assert sample.id == expected["record"]["id"]
        assert sample.speaker == expected["speaker"]
        assert store.record(number) == {**expected["record"], "speaker": expected["speaker"]}
        # Prefix, middle and suffix, and for either clip its frames and nine rows.
        assert store.length(number) == (number + 2) + 3 + 2 + (4 + 9) + (number + 1 + 9)
    assert store.lengths.tolist() == [store.length(number) for number in range(5)]
    assert (tmp_path / "store" / "codes.u16").stat().st_size == 2 * 8 * 19
    rejected = (tmp_path / "store" / "rejected.jsonl").read_text("utf-8")
    assert json.loads(rejected) == {"id": "bad", "line": 3, "reason": "no target audio"}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    stores = []
    for name in ("a", "b"):
        write(tmp_path / name)
        stores.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert stores[0] == stores[1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_middle_leaves_the_earlier_store(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "store"
    write(path, samples=2)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def half() -> None:
        with StoreWriter(path, made_by={}) as writer:
            writer.add_clip(np.zeros((3, 8), dtype=np.uint16), audio=bytes(32))
            raise error

    with pytest.raises(error):
        half()
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_does_not_get_into_the_next_store(tmp_path: Path) -> None:
    partial = tmp_path / ".store.partial"
    partial.mkdir()
    (partial / "codes.u16").write_bytes(b"half")
    (partial / "stray").write_bytes(b"")
    write(tmp_path / "store")
    assert {path.name for path in (tmp_path / "store").iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]


def test_a_newer_store_takes_the_place_of_the_old(tmp_path: Path) -> None:
    write(tmp_path / "store", samples=2)
    write(tmp_path / "store", samples=3)
    assert len(Store.open(tmp_path / "store", verify=True)) == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.docx").write_text("years of work")
    with pytest.raises(StepError, match="was not written by this step"):
        write(tmp_path / "store")
    assert (tmp_path / "store" / "thesis.docx").read_text() == "years of work"


def test_a_store_without_samples_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        write(tmp_path / "store", samples=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "codes", [np.zeros((0, 8), np.uint16), np.zeros((3, 7), np.uint16), np.zeros((3, 8)), np.zeros(8, np.uint16)]
)
def test_only_codes_are_clips(tmp_path: Path, codes: Any) -> None:
    with StoreWriter(tmp_path / "store", made_by={}) as writer:
        with pytest.raises(ValueError, match=r"a clip is uint16 \[T >= 1, 8\]"):
            writer.add_clip(codes, audio=bytes(32))
        ids = np.array([1])
        number = writer.add_clip(np.zeros((1, 8), np.uint16), audio=bytes(32))
        writer.add_sample(
            Segments(prefix=ids, middle=ids, suffix=ids),
            reference=number,
            target=number,
            speaker="",
            validation=False,
            record={"id": "a"},
        )


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="there is no store here") as caught:
        Store.open(tmp_path / "store")
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert caught.value.path == tmp_path / "store"


@pytest.mark.parametrize("name", sorted(FILES - {"store.json"}))
def test_damage_is_noticed_and_its_file_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    write(path)
    file = path / name
    content = file.read_bytes()

    file.write_bytes(content[:-1])
    with pytest.raises(StepError, match=f"has {len(content) - 1} bytes, store.json says {len(content)}") as caught:
        Store.open(path)
    assert (caught.value.path, caught.value.code) == (file, ExitCode.BAD_DATA)

    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(StepError, match="SHA-256 differs") as caught:
        Store.open(path, verify=True)
    assert caught.value.path == file

    file.unlink()
    with pytest.raises(StepError, match="the store is damaged: this file is missing") as caught:
        Store.open(path)
    assert caught.value.path == file


@pytest.mark.parametrize(
    "content, complaint", [("{", "cannot be read"), ('{"schema": "x/v9"}', "schema 'x/v9'"), ("[]", "schema None")]
)
def test_a_description_that_is_none(tmp_path: Path, content: str, complaint: str) -> None:
    write(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(content)
    with pytest.raises(StepError, match=complaint) as caught:
        Store.open(tmp_path / "store")
    assert caught.value.path == tmp_path / "store" / "store.json"
