"""Data and stores that are somewhere else, through fsspec: in memory, and on this disk by URL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

pytest.importorskip("torch")

from higgsc.contract.jobs import DataSource, StepContext
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.places import Places, fetch_store
from higgsc.data.remote import Mirror, file_system, is_url, place_in
from higgsc.data.store import Store
from tests.data.rows import sample


@pytest.fixture(params=["memory", "file"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of an empty folder that is not the project's."""
    if request.param == "file":
        return f"file://{tmp_path_factory.mktemp('bucket')}"
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket"


def put(bucket: str, name: str, content: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(f"{bucket}/{name}")
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, content)


def source(path: str, form: str = "auto") -> tuple[DataSource, ...]:
    return (DataSource(path=path, format=form),)


@pytest.fixture
def there(filled: Any, bucket: str) -> Any:
    """The project's data as files of the bucket, and nothing of them here."""
    filled.write([sample("one"), sample("two", "audio/b.wav", "audio/a.wav")])
    filled.prepare()
    filled.local = filled.contents()
    for path in (filled.root / "data").rglob("*"):
        if path.is_file():
            put(bucket, str(path.relative_to(filled.root)), path.read_bytes())
    shutil.rmtree(filled.root / "data")
    shutil.rmtree(filled.root / "runs")
    return filled


def test_remote_data_make_the_same_store_but_for_names(there: Any, bucket: str) -> None:
    result = there.prepare(sources=source(f"{bucket}/data/train.json"))
    assert result.summary == "2 samples encoded, 0 rejected"
    assert result.figures["encoded clips"] == 0, "the audio is known by its content"
    assert result.inputs == ()
    contents = there.contents()
    for name in ("codes.u16", "text.u32", "clips.npy"):
        assert contents[name] == there.local[name]
    record = there.store().record(0)
    assert record["source"] == f"{bucket}/data/train.json"
    assert record["target_audio"] == {"path": f"{bucket}/data/audio/b.wav"}
    assert str(there.root).encode() not in b"".join(contents.values())


def test_a_file_comes_here_once_for_all_that_is_read_of_it(
    there: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = Mirror.fetch

    def counted(self: Mirror, path: Path) -> None:
        fetched.append(path.name)
        fetch(self, path)

    monkeypatch.setattr(Mirror, "fetch", counted)
    there.prepare(sources=source(f"{bucket}/data/train.json"), cache="fresh")
    assert sorted(fetched) == ["a.wav", "b.wav", "train.json"]
    fetched.clear()
    shutil.rmtree(there.root / "runs")
    there.prepare(sources=source(f"{bucket}/data/train.json"), cache="fresh")
    # The memory file system says when a file was made; a disk says when it changed, which was just now.
    assert fetched == ["train.json"]


def test_a_store_somewhere_else_is_written_and_read(there: Any, bucket: str) -> None:
    url = f"{bucket}/stores/one"
    there.prepare(sources=source(f"{bucket}/data/train.json"), store=url)
    fs, name = fsspec.core.url_to_fs(url)
    assert sorted(path.rpartition("/")[2] for path in fs.ls(name, detail=False)) == sorted(
        ["clips.npy", "codes.u16", "rejected.jsonl", "samples.jsonl", "samples.npy", "store.json", "text.u32"]
    )
    elsewhere = StepContext(job_path=there.root / "job.json", root=there.root / "other", rank=0, world_size=1)
    path = fetch_store(url, there.job(), elsewhere)
    assert path.is_relative_to(elsewhere.root)
    assert len(Store.open(path, verify=True)) == 2
    # A newer one replaces what is here.
    there.prepare(sources=source(f"{bucket}/data/train.json"), store=url, seed=9)
    assert Store.open(fetch_store(url, there.job(), elsewhere), verify=True).made_by["seed"] == 9


def test_no_store_there(there: Any, bucket: str) -> None:
    with pytest.raises(StepError, match=f"there is no store at {bucket}/none") as caught:
        fetch_store(f"{bucket}/none", there.job(), there.context)
    assert caught.value.code == ExitCode.MISSING_INPUT


def test_what_is_not_there_is_named(there: Any, bucket: str) -> None:
    with pytest.raises(StepError, match=f"there is no data file {bucket}/data/none.json"):
        there.prepare(sources=source(f"{bucket}/data/none.json"))
    put(bucket, "data/train.json", json.dumps([sample("one", target="audio/none.wav")]).encode())
    with pytest.raises(StepError, match=f"target audio {bucket}/data/audio/none.wav: the file does not exist"):
        there.prepare(sources=source(f"{bucket}/data/train.json"))


@pytest.mark.parametrize("name", ["../secret.wav", "../../../../../../local.wav", "/etc/passwd", "https://x.org/a.wav"])
def test_a_data_file_names_nothing_outside_its_own_folder(there: Any, bucket: str, name: str) -> None:
    put(bucket, "secret.wav", b"")
    put(bucket, "data/train.json", json.dumps([sample("one", target=name)]).encode())
    with pytest.raises(StepError, match="1 of 1 samples are bad") as caught:
        there.prepare(sources=source(f"{bucket}/data/train.json"))
    assert "lies outside" in str(caught.value) or "is a URL" in str(caught.value)


def test_a_local_data_file_does_not_reach_into_the_mirror(filled: Any, bucket: str) -> None:
    put(bucket, "audio/secret.wav", (filled.root / "data/audio/a.wav").read_bytes())
    place = place_in(filled.root / "runs/test/remote", f"{bucket}/audio/secret.wav")
    filled.write([sample("one", target="../" + str(place.relative_to(filled.root)))])
    with pytest.raises(StepError, match="the file does not exist"):
        filled.prepare()


def test_more_folders_can_be_allowed(there: Any, bucket: str) -> None:
    fs, name = fsspec.core.url_to_fs(f"{bucket}/data/audio/a.wav")
    put(bucket, "more/a.wav", fs.cat_file(name))
    put(bucket, "data/train.json", json.dumps([sample("one", target="../more/a.wav")]).encode())
    there.prepare(sources=source(f"{bucket}/data/train.json"), roots=(f"{bucket}/more",))
    assert there.store().record(0)["target_audio"] == {"path": f"{bucket}/more/a.wav"}


def test_transcripts_in_files_of_their_own_come_along(there: Any, bucket: str) -> None:
    row = {"id": "x", "audio_file": "audio/a.wav", "transcript_file": "audio/a.txt", "ref_audio_file": "audio/b.wav"}
    put(bucket, "data/metadata.json", json.dumps({"samples": [row | {"ref_transcript": "مرجع"}]}).encode())
    put(bucket, "data/audio/a.txt", "هدف".encode())
    there.prepare(sources=source(f"{bucket}/data/metadata.json"))
    assert there.store().record(0)["target_text"] == "هدف."


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(StepError, match="cannot reach s3://b/x: s3:// needs a package that is not installed") as caught:
        file_system("s3://b/x")
    assert caught.value.code == ExitCode.MISSING_INPUT
    assert caught.value.help == "pip install s3fs"
    with pytest.raises(StepError, match="unknown protocol nonsense://"):
        file_system("nonsense://b/x")


def test_what_goes_wrong_on_the_way_says_where(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("403 Forbidden\nmore")

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "get_file", refuse)
    with pytest.raises(StepError, match=r"cannot reach memory://bucket/data/train\.json: 403 Forbidden") as caught:
        there.prepare(sources=source("memory://bucket/data/train.json"))
    assert caught.value.code == ExitCode.IO


def test_files_that_are_done_with_are_let_go(there: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("higgsc.data.remote._KEPT", 1)
    there.prepare(sources=source(f"{bucket}/data/train.json"), cache="fresh")
    assert len(list((there.root / "runs/test/remote").rglob("*.wav"))) == 1


def test_names_in_the_mirror() -> None:
    assert is_url("s3://b/x")
    assert not is_url("data/x.json")
    assert not is_url("/data/x.json")
    mirror = Path("/m")
    assert place_in(mirror, "s3://b/x/y.json") == Path("/m/s3/b/x/y.json")
    assert place_in(mirror, "s3://b/../../../etc/passwd") == Path("/m/s3/etc/passwd"), "never above the mirror"
    assert Mirror(mirror, ("s3://b/x/",)).url(Path("/m/s3/b/x/y/z.wav")) == "s3://b/x/y/z.wav"
    assert Mirror(mirror, ("s3://b/x",)).url(Path("/m/s3/b/y.wav")) is None


def test_a_remote_source_has_homes_of_its_own(filled: Any) -> None:
    job = filled.job(sources=source("memory://bucket/data/train.json"), roots=("memory://bucket/more", "here"))
    places = Places(job, filled.context)
    homes = places.homes(places.path("memory://bucket/data/train.json"))
    assert [places.name(home) for home in homes] == ["memory://bucket/data", "memory://bucket/more"]
