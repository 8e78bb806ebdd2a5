"""Encoding divided, repeated and killed: always the same store, and never the same work twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import higgsc.data.collect
import higgsc.data.encoders
from higgsc.contract import publish
from higgsc.contract.jobs import EncodeJob, StepContext
from higgsc.contract.outcome import ExitCode, StepError, StepResult
from higgsc.data import cache as caches
from higgsc.data import encode
from higgsc.data.cache import CodeCache
from higgsc.data.clips import recipe_of
from higgsc.data.codec import Codec
from higgsc.data.layout import ChatLayout
from higgsc.data.lock import exclusive
from higgsc.data.records import AudioSpan
from higgsc.data.store_writer import StoreWriter
from higgsc.train.model.builtin import tiny_path
from tests.data.rows import sample

CLIPS = 12


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> Codec:
    """Codec and tokenizer are loaded once for all the runs of a test."""
    codec, layout = Codec.load(tiny_path("audio_tokenizer")), ChatLayout.load("builtin:tiny")
    monkeypatch.setattr(higgsc.data.encoders, "load_codec", lambda *_, **__: codec)
    monkeypatch.setattr(higgsc.data.collect.ChatLayout, "load", lambda *_, **__: layout)
    return codec


@pytest.fixture
def speech(project: Any) -> Any:
    """Clips in a circle, each the target of one sample and the reference of another, at 24 and 16 kHz, and a copy."""
    names = [project.audio(f"{number}.wav", 0.25 + 0.04 * (number % 3), seed=number) for number in range(CLIPS)]
    shutil.copy(project.root / "data" / names[0], project.root / "data/audio/copy.wav")
    rows = [sample(str(number), names[number - 1], name) for number, name in enumerate(names)]
    project.write([*rows, sample("copy", names[1], "audio/copy.wav")])
    settle(project.root)
    return project


def settle(root: Path) -> None:
    """Let the recordings be a day old: what changed just now is read again, to be sure."""
    for path in (root / "data/audio").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))


def encode_job(project: Any, shards: int, **changes: Any) -> EncodeJob:
    fields = project.job(validation_fraction=0.2, **changes).model_dump()
    for name in ("step", "validation_fraction", "validation_by", "store"):
        del fields[name]
    return EncodeJob(**fields, shards=shards)


def run_shard(project: Any, shard: int | None, shards: int, **changes: Any) -> StepResult:
    return encode.run(encode_job(project, shards, **changes), project.context, shard)


def prepare(project: Any, **changes: Any) -> StepResult:
    result: StepResult = project.prepare(validation_fraction=0.2, **changes)
    return result


@pytest.mark.parametrize("shards", [1, 3, 20])
def test_the_store_is_the_same_whatever_the_number_of_shards(speech: Any, shards: int) -> None:
    prepare(speech)
    whole = speech.contents()
    order = list(range(shards))
    random.Random(shards).shuffle(order)
    results = [run_shard(speech, shard, shards, cache="other") for shard in order]
    assert sum(result.figures["clips"] for result in results) == CLIPS + 1, "each file belongs to one shard"
    assert sum(result.figures["encoded"] for result in results) in (CLIPS, CLIPS + 1), "the copy may be another's"
    result = prepare(speech, cache="other")
    assert result.figures["encoded clips"] == 0
    assert speech.contents() == whole


def test_without_a_number_all_shards_are_done(speech: Any) -> None:
    assert run_shard(speech, None, 3).figures["encoded"] == CLIPS
    assert run_shard(speech, None, 3).summary == f"0 clips encoded, {CLIPS + 1} were before"
    with pytest.raises(StepError, match="there is no shard 3 of 3"):
        run_shard(speech, 3, 3)


def test_a_shard_that_never_ran_is_made_up_for(speech: Any) -> None:
    first = run_shard(speech, 0, 2)
    result = prepare(speech)
    assert 0 < first.figures["encoded"] < CLIPS
    assert first.figures["encoded"] + result.figures["encoded clips"] == CLIPS


@pytest.mark.slow
def test_the_store_is_the_same_whatever_the_number_of_workers(speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prepare(speech)
    whole = speech.contents()
    prepare(speech, cache="other", workers=2)
    assert speech.contents() == whole
    logs = list((speech.root / "other").glob("*/*.codes"))
    assert len(logs) == 2, "two processes encoded, and this one nothing"


def test_bad_audio_is_as_bad_in_a_shard(speech: Any) -> None:
    (speech.root / "data/audio/3.wav").write_bytes(b"")
    shards = [run_shard_or_error(speech, shard) for shard in range(3)]
    assert sorted(type(outcome) is StepError for outcome in shards) == [False, False, True]
    (error,) = (outcome for outcome in shards if isinstance(outcome, StepError))
    assert "reference audio data/audio/3.wav" in str(error) or "target audio data/audio/3.wav" in str(error)


def run_shard_or_error(project: Any, shard: int) -> StepResult | StepError:
    try:
        return run_shard(project, shard, 3)
    except StepError as error:
        return error


@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, max_size=20),
    shards=st.integers(1, 9),
    data=st.data(),
)
def test_a_shard_is_a_function_of_the_name(names: list[str], shards: int, data: st.DataObject) -> None:
    class Names:
        def name(self, path: Path) -> str:
            return str(path)

    places: Any = Names()
    spans = [AudioSpan(Path(name)) for name in names]
    mine = {span: encode.shard_of(span, places, shards) for span in spans}
    assert all(0 <= shard < shards for shard in mine.values())
    for span in data.draw(st.permutations(spans)):
        assert encode.shard_of(span, places, shards) == mine[span]


class TestNothingTwice:
    """Content decides, not names or runs."""

    def test_another_run_encodes_nothing(self, speech: Any) -> None:
        assert prepare(speech).figures["encoded clips"] == CLIPS, "the copy is the same audio"
        assert prepare(speech, run="runs/other", store="runs/other/store").figures["encoded clips"] == 0

    def test_recordings_that_moved_are_the_same(self, speech: Any) -> None:
        prepare(speech)
        (speech.root / "data").rename(speech.root / "moved")
        assert prepare(speech, sources=source("moved/train.json")).figures["encoded clips"] == 0

    def test_a_recording_that_changed_is_encoded_anew(self, speech: Any) -> None:
        prepare(speech)
        speech.audio("3.wav", 0.25, seed=99)
        assert prepare(speech).figures["encoded clips"] == 1
        settle(speech.root)
        assert prepare(speech).figures["encoded clips"] == 0

    def test_files_that_look_the_same_are_not_even_read(self, speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare(speech)
        monkeypatch.setattr("higgsc.data.clips.sha256_file", lambda path: pytest.fail(f"read {path}"))
        assert prepare(speech).figures["encoded clips"] == 0

    def test_stricter_limits_hold_for_what_was_encoded(self, speech: Any) -> None:
        prepare(speech)
        with pytest.raises(StepError, match=r"lasts 0\.25 s, less than 0\.26 s"):
            prepare(speech, limits={"min_seconds": 0.26})
        with pytest.raises(StepError, match=r"lasts more than 0\.3 s"):
            prepare(speech, limits={"max_seconds": 0.3})


def source(path: str) -> Any:
    from higgsc.contract.jobs import DataSource

    return (DataSource(path=path, format="auto"),)


def test_two_at_one_store_do_not_mix(speech: Any) -> None:
    with exclusive(speech.root / "runs/test/store"):
        with pytest.raises(StepError, match=rf"process {os.getpid()} on .* is writing this") as caught:
            prepare(speech)
        assert caught.value.code == ExitCode.IO
        assert caught.value.path == speech.root / "runs/test/store"
        prepare(speech, store="runs/test/other")
    prepare(speech)


KILLS = 20


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_done_twice(speech: Any, loaded: Codec) -> None:
    """Twenty kills, each at some write, half-write or rename of encoding in three shards or of preparing."""
    prepare(speech, cache="undisturbed")
    whole = speech.contents()
    shutil.rmtree(speech.root / "runs")
    chance = random.Random(5)
    kept: set[str] = set()
    encoded = kills = 0
    while kills < KILLS:
        at, torn = chance.randint(1, 9), chance.random()
        log, code = in_child(lambda note, at=at, torn=torn: attempt(speech, note, at, torn))
        assert code in (0, -signal.SIGKILL), log
        encoded += log.count("encoded")
        kept |= {line.removeprefix("kept ") for line in log if line.startswith("kept ")}
        there = {repr(part) for part in CodeCache(speech.root / "codes", recipe_of(loaded))._entries}
        assert kept <= there, "what was finished is still there"
        kills += code != 0
        if code == 0:  # done before the moment came: the next attempts are killed while they write the store
            assert speech.contents() == whole
            shutil.rmtree(speech.root / "runs")
    prepare(speech)
    assert speech.contents() == whole
    assert len(kept) > CLIPS / 2, "most of them were kept before the kill, and some kills came in between"
    assert CLIPS <= encoded <= CLIPS + KILLS, "at most the clip in hand is encoded again"
    with_codes = [r for path in (speech.root / "codes").glob("*/*.codes") for r in caches._records(path) if r[2]]
    assert len(with_codes) == CLIPS, "each clip once"


def attempt(project: Any, note: Callable[[str], None], at: int, torn: float) -> None:
    """In a child: all shards and the prepare step, killed at the given one of the moments that matter."""
    left = at

    def moment(part: Callable[[], None] | None = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if part is not None:
                part()
            os.kill(os.getpid(), signal.SIGKILL)

    write, put, flush, encode_one = caches._write, publish._put_in_place, publish.flush_file, Codec.encode
    add, add_sample = CodeCache.add, StoreWriter.add_sample

    def half_write(descriptor: int, record: bytes) -> None:
        moment(lambda: write(descriptor, record[: int(torn * len(record))]))
        write(descriptor, record)
        moment()

    def noted_add(self: CodeCache, part: Any, *arguments: Any, **options: Any) -> Any:
        entry = add(self, part, *arguments, **options)
        note(f"kept {part!r}")
        return entry

    def noted_encode(self: Codec, wave: Any) -> Any:
        note("encoded")
        return encode_one(self, wave)

    def killed(function: Callable[..., Any]) -> Callable[..., Any]:
        def before_and_after(*arguments: Any, **options: Any) -> Any:
            moment()
            result = function(*arguments, **options)
            moment()
            return result

        return before_and_after

    caches._write = half_write
    publish._put_in_place, publish.flush_file = killed(put), killed(flush)
    CodeCache.add, Codec.encode = noted_add, noted_encode  # type: ignore[method-assign]
    StoreWriter.add_sample = killed(add_sample)  # type: ignore[method-assign]
    for shard in range(3):
        run_shard(project, shard, 3)
    prepare(project)


def in_child(work: Callable[[Callable[[str], None]], None]) -> tuple[list[str], int]:
    """Fork, work, and say what the child noted and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            work(lambda line: os.write(writer, f"{line}\n".encode()) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    _, status = os.waitpid(child, 0)
    return lines, os.waitstatus_to_exitcode(status)


def test_the_child_of_the_test_is_killed(speech: Any) -> None:
    """The test above would be none if the moments did not come."""
    log, code = in_child(lambda note: attempt(speech, note, 4, 0.5))
    assert (code, log.count("encoded")) == (-signal.SIGKILL, 2)
    assert len([line for line in log if line.startswith("kept")]) == 1
    context: StepContext = speech.context
    assert not (context.root / "runs/test/store").exists()
