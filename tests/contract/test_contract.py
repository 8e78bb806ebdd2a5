"""Job files, receipts and heartbeats: read back, refused when wrong, stale when they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.contract.heartbeat import HeartbeatWriter, read_heartbeat
from higgsc.contract.jobs import PrepareJob, StepContext, load_job
from higgsc.contract.outcome import ExitCode, StepError, StepResult
from higgsc.contract.receipts import read_receipt, why_stale, write_atomically, write_receipt

JOB = Path(__file__).parent.parent.parent / "generated" / "quickstart" / "jobs" / "prepare.json"


def test_a_job_finds_its_root_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = load_job(JOB)
    assert isinstance(job, PrepareJob)
    context = StepContext.of(JOB, job)
    assert context.path(job.sources[0].path).is_file()
    assert (context.rank, context.world_size, context.is_first) == (0, 1, True)


@pytest.mark.parametrize(
    "text, code",
    [
        ("{}", ExitCode.BAD_DATA),
        ("not json", ExitCode.BAD_DATA),
        ('{"step": "prepare"}', ExitCode.BAD_DATA),
        ('{"step": "fly"}', ExitCode.BAD_DATA),
        (None, ExitCode.MISSING_INPUT),
    ],
)
def test_what_is_not_a_job_is_refused_with_the_files_name(tmp_path: Path, text: str | None, code: ExitCode) -> None:
    path = tmp_path / "job.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StepError) as caught:
        load_job(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(JOB.read_text().replace('"seed": 0', '"seed": 0, "sede": 1'))
    with pytest.raises(StepError, match="sede"):
        load_job(path)


def test_receipts_hold_until_something_changes(tmp_path: Path) -> None:
    job, data, output = tmp_path / "job.json", tmp_path / "data", tmp_path / "output"
    for path in (job, data, output):
        path.write_text("1")
    result = StepResult(summary="done", inputs=(data,), outputs=(output,), figures={"loss": 1.5})
    write_receipt(tmp_path / "run", "train", result, job_path=job, root=tmp_path, seconds=2.0)

    def reason() -> str | None:
        return why_stale(read_receipt(tmp_path / "run", "train"), job_path=job, root=tmp_path)

    assert reason() is None
    receipt = read_receipt(tmp_path / "run", "train")
    assert receipt is not None
    assert receipt.figures == {"loss": 1.5}
    assert why_stale(None, job_path=job, root=tmp_path) == "has not finished before"
    data.write_text("22")
    assert reason() == "its input data changed"
    data.unlink()
    assert reason() == "its input data is gone"
    job.write_text("2")
    assert reason() == "its job file changed"
    job.write_text("1")
    data.write_text("1")
    write_receipt(tmp_path / "run", "train", result, job_path=job, root=tmp_path, seconds=2.0)
    output.unlink()
    assert reason() == "its output output is gone"


def test_heartbeats_are_rate_limited_unless_forced(tmp_path: Path) -> None:
    writer = HeartbeatWriter(tmp_path, "train", unit="steps", total=10)
    assert read_heartbeat(tmp_path) is None
    for done in range(5):
        writer.beat(done, f"at {done}")
    beat = read_heartbeat(tmp_path)
    assert beat is not None
    assert (beat.done, beat.message) == (0, "at 0")
    writer.beat(9, "last", force=True)
    beat = read_heartbeat(tmp_path)
    assert beat is not None
    assert (beat.done, beat.total, beat.unit) == (9, 10, "steps")
    HeartbeatWriter(tmp_path / "other", "train", unit="steps", total=1, enabled=False).beat(1, force=True)
    assert not (tmp_path / "other").exists()


def test_writing_atomically_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "file", "text")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_errors_read_like_compiler_messages() -> None:
    error = StepError("no target audio", path="data/train.json", line=12, help="add it")
    assert str(error) == "data/train.json:12: no target audio\n  = help: add it"
    assert str(StepError("broken")) == "broken"
