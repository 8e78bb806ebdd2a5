"""Receipts: proof that a step finished, on which inputs, with which outputs.

A receipt lies at `<run>/receipts/<step>.json`. It is written by the step itself, so that it means the same
whether the step was started by hand, by `higgsc run` or by a scheduler.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from higgsc.contract.outcome import StepResult


class InputStamp(BaseModel):
    """A file that a step read, as it was then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Relative to the project root."""
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, root: Path) -> InputStamp:
        status = path.stat()
        return cls(path=os.path.relpath(path, root), size=status.st_size, mtime_ns=status.st_mtime_ns)


class Receipt(BaseModel):
    """What `<run>/receipts/<step>.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    job_sha256: str
    summary: str
    seconds: float
    figures: Mapping[str, float | int | str]
    inputs: tuple[InputStamp, ...]
    outputs: tuple[str, ...]
    """Relative to the project root."""


def receipt_path(run: Path, step: str) -> Path:
    """Where the receipt of a step lies below its run's folder."""
    return run / "receipts" / f"{step}.json"


def receipt_of(step: str, result: StepResult, *, job_path: Path, root: Path, seconds: float) -> Receipt:
    """The receipt of what a step did."""
    return Receipt(
        step=step,
        job_sha256=sha256_file(job_path),
        summary=result.summary,
        seconds=round(seconds, 3),
        figures=result.figures,
        inputs=tuple(InputStamp.of(path, root) for path in result.inputs),
        outputs=tuple(os.path.relpath(path, root) for path in result.outputs),
    )


def write_receipt(run: Path, step: str, result: StepResult, *, job_path: Path, root: Path, seconds: float) -> None:
    """Record that a step finished."""
    put_receipt(run, receipt_of(step, result, job_path=job_path, root=root, seconds=seconds))


def put_receipt(run: Path, receipt: Receipt) -> None:
    """Put a receipt where that of its step belongs."""
    write_atomically(receipt_path(run, receipt.step), receipt.model_dump_json(indent=2) + "\n")


def read_receipt(run: Path, step: str) -> Receipt | None:
    """The receipt of a step, or None if it has not finished in this run."""
    path = receipt_path(run, step)
    return Receipt.model_validate_json(path.read_text("utf-8")) if path.is_file() else None


def why_stale(receipt: Receipt | None, *, job_path: Path, root: Path) -> str | None:
    """Why a step has to run again, or None while its receipt holds."""
    if receipt is None:
        return "has not finished before"
    if receipt.job_sha256 != sha256_file(job_path):
        return "its job file changed"
    for stamp in receipt.inputs:
        path = root / stamp.path
        if not path.exists():
            return f"its input {stamp.path} is gone"
        if InputStamp.of(path, root) != stamp:
            return f"its input {stamp.path} changed"
    for output in receipt.outputs:
        if not (root / output).exists():
            return f"its output {output} is gone"
    return None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    Args:
        path: The file; folders above it are made.
        text: Its new content.
        durable: Whether the content has to survive a power cut too, which costs a wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:  # a full disk gets no fuller
        temporary.unlink(missing_ok=True)
        raise
