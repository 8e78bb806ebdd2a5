"""The store: what `prepare` writes and everything after it reads, a folder of flat files.

| file           | content                                                                                |
|----------------|----------------------------------------------------------------------------------------|
| codes.u16      | `[F, 8]` little-endian uint16: the codes of all clips, end to end, without delay       |
| text.u32       | `[W]` little-endian uint32: the token ids of all samples, end to end                   |
| clips.npy      | one row a clip: where it starts in codes.u16 and its frames, see `CLIP_ROW`            |
| samples.npy    | one row a sample, see `SAMPLE_ROW`                                                     |
| samples.jsonl  | one line a sample: id, speaker, texts, audio files, and where in the data it came from |
| rejected.jsonl | one line a sample that was left out: id, file, line, reason                            |
| heard.bf16     | only where a Whisper listened to the references: what it heard, `[H, width]` bfloat16  |
| heard.npy      | likewise, one number a clip: where it starts in heard.bf16, -1 for what is no reference |
| store.json     | schema, counts, speakers, what made it, and size and SHA-256 of every other file       |

A clip lies in the store once, however many samples use it. The folder is put in place whole, by
`publish_folder`, and equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from higgsc.catalog.codec import CODEBOOKS, EXTRA_ROWS_PER_CLIP
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.receipts import sha256_file
from higgsc.data.listener import Listener

STORE_SCHEMA = "higgsc.store/v2"
STORE_FILE = "store.json"
STORE_FILES = ("codes.u16", "text.u32", "clips.npy", "samples.npy", "samples.jsonl", "rejected.jsonl")
HEARD_FILES = ("heard.bf16", "heard.npy")
"""Two more where a Whisper listened."""

CLIP_ROW = np.dtype(
    [
        ("offset", "<i8"),  # frames before it in codes.u16
        ("frames", "<i4"),
        ("audio", "u1", (32,)),  # SHA-256 of the audio file that it, or a part of it, was encoded from
    ]
)

SAMPLE_ROW = np.dtype(
    [
        ("text", "<i8"),  # where the sample's ids start in text.u32: prefix, middle and suffix, in this order
        ("prefix", "<i4"),  # number of ids
        ("middle", "<i4"),
        ("suffix", "<i4"),
        ("reference", "<i4"),  # row of clips.npy
        ("target", "<i4"),
        ("speaker", "<i4"),  # index into `speakers` of store.json
        ("validation", "?"),
        ("record", "<i8"),  # where the sample's line starts in samples.jsonl, in bytes
    ]
)

Ids = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """One sample, ready to be made a training sequence."""

    id: str
    speaker: str
    prefix: Ids
    """Token ids before the reference's rows; see `higgsc.data.layout.Segments`."""
    middle: Ids
    suffix: Ids
    reference: Codes
    """Codes of the reference, `[T, 8]`."""
    target: Codes
    """Codes of the target, `[T, 8]`."""
    heard: Codes | None = None
    """What a Whisper heard of each frame of the reference, the bits of bfloat16 `[T, width]`; None if none listened."""


@dataclass(frozen=True, slots=True)
class Index:
    """Where the parts of all samples are, for those who take many at a time. int64, a row a sample."""

    text: npt.NDArray[np.int64]
    """First id in text.u32, `[n]`; the parts lie one after the other."""
    words: npt.NDArray[np.int64]
    """Ids of prefix, middle and suffix, `[n, 3]`."""
    first_frame: npt.NDArray[np.int64]
    """Of reference and target in codes.u16, `[n, 2]`."""
    frames: npt.NDArray[np.int64]
    """Of reference and target, `[n, 2]`."""
    first_heard: npt.NDArray[np.int64] | None
    """Of the reference in heard.bf16, `[n]`; None where no Whisper listened."""

    @classmethod
    def of(cls, samples: npt.NDArray[Any], clips: npt.NDArray[Any], heard: npt.NDArray[np.int64] | None) -> Index:
        """From the rows of samples.npy, clips.npy and heard.npy."""
        both = np.stack([samples["reference"], samples["target"]], axis=1)
        return cls(
            text=samples["text"].astype(np.int64),
            words=np.stack([samples[part] for part in ("prefix", "middle", "suffix")], axis=1).astype(np.int64),
            first_frame=clips["offset"][both].astype(np.int64),
            frames=clips["frames"][both].astype(np.int64),
            first_heard=None if heard is None else heard[samples["reference"]],
        )


class Store:
    """A store opened for reading. Codes, ids and records are memory-mapped: many processes share one copy."""

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.made_by: Mapping[str, Any] = description["made_by"]
        """What the content depends on: `base`, `revision`, `codec` (a fingerprint), `seed` and more."""
        self.counts: Mapping[str, int] = description["counts"]
        self.speakers: list[str] = description["speakers"]
        self.codes: Codes = np.memmap(path / "codes.u16", dtype="<u2", mode="r").reshape(-1, CODEBOOKS)
        """All frames, `[F, 8]`."""
        self.text: npt.NDArray[np.uint32] = np.memmap(path / "text.u32", dtype="<u4", mode="r")
        """All text ids, `[W]`."""
        whisper = self.made_by.get("whisper")
        self.listener: Listener | None = None if whisper is None else Listener.model_validate(whisper)
        """The Whisper that listened to the references, if one did."""
        self.heard: Codes | None = None
        """What it heard, the bits of bfloat16 `[H, width]`."""
        starts = None
        if self.listener is not None:
            starts = np.load(path / "heard.npy").astype(np.int64)
            self.heard = np.memmap(path / "heard.bf16", dtype="<u2", mode="r").reshape(-1, self.listener.width)
        self._clips = np.load(path / "clips.npy")
        self._samples = np.load(path / "samples.npy")
        self._records = np.memmap(path / "samples.jsonl", dtype=np.uint8, mode="r")
        self.train: npt.NDArray[np.int64] = np.flatnonzero(~self._samples["validation"])
        """Numbers of the samples to train on, ascending."""
        self.validation: npt.NDArray[np.int64] = np.flatnonzero(self._samples["validation"])
        """Numbers of the samples held out, ascending."""
        self.index = Index.of(self._samples, self._clips, starts)
        """Where the parts of each sample are."""
        self.speaker_numbers: npt.NDArray[np.int64] = self._samples["speaker"].astype(np.int64)
        """Each sample's speaker as an index into `speakers`, `[n]`."""
        self.reference_frames: npt.NDArray[np.int64] = self.index.frames[:, 0]
        """Frames of each sample's reference, `[n]`."""
        self.target_frames: npt.NDArray[np.int64] = self.index.frames[:, 1]
        """Frames of each sample's target, `[n]`."""
        self.lengths: npt.NDArray[np.int64] = (
            self.index.words.sum(axis=1) + self.index.frames.sum(axis=1) + 2 * EXTRA_ROWS_PER_CLIP
        )
        """Positions of each sample's full sequence, audio rows and text, `[n]`."""

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> Store:
        """Open a store.

        Args:
            path: Its folder.
            verify: Also compare the SHA-256 of every file, which reads all of them.

        Raises:
            StepError: There is none (66), or a file is missing, cut short or changed (65).
        """
        try:
            description = json.loads((path / STORE_FILE).read_text("utf-8"))
        except FileNotFoundError as error:
            raise StepError(
                "there is no store here",
                code=ExitCode.MISSING_INPUT,
                path=path,
                help="run the prepare step first",
            ) from error
        except (OSError, ValueError) as error:
            raise _damaged(path / STORE_FILE, f"cannot be read ({error})") from error
        schema = description.get("schema") if isinstance(description, dict) else None
        if schema != STORE_SCHEMA:
            raise _damaged(path / STORE_FILE, f"is of schema {schema!r}, this version reads {STORE_SCHEMA!r}")
        for name in files_of(description):
            file, expected = path / name, description["files"][name]
            if not file.is_file():
                raise _damaged(file, "is missing")
            if file.stat().st_size != expected["size"]:
                raise _damaged(file, f"has {file.stat().st_size} bytes, {STORE_FILE} says {expected['size']}")
            if verify and sha256_file(file) != expected["sha256"]:
                raise _damaged(file, f"is not the file that {STORE_FILE} describes (its SHA-256 differs)")
        return cls(path, description)

    def __len__(self) -> int:
        return len(self._samples)

    def length(self, index: int) -> int:
        """Positions of the full sequence of a sample."""
        return int(self.lengths[index])

    def sample(self, index: int) -> StoredSample:
        """One sample by its number, `0` to `len(store) - 1`.

        Raises:
            StepError: The files changed since the store was opened, and no longer hold it.
        """
        try:
            return self._read(index)
        except (ValueError, KeyError, IndexError) as error:
            raise _damaged(self.path, f"does not hold sample {index} ({error})") from error

    def _read(self, index: int) -> StoredSample:
        row = self._samples[index]
        record = self.record(index)
        lengths = [int(row[part]) for part in ("prefix", "middle", "suffix")]
        start = int(row["text"])
        ids = self.text[start : start + sum(lengths)].astype(np.int64)
        prefix, middle, suffix = np.split(ids, np.cumsum(lengths)[:-1])
        return StoredSample(
            id=record["id"],
            speaker=self.speakers[int(row["speaker"])],
            prefix=prefix,
            middle=middle,
            suffix=suffix,
            reference=self._clip(int(row["reference"])),
            target=self._clip(int(row["target"])),
            heard=self._heard(index),
        )

    def record(self, index: int) -> dict[str, Any]:
        """A sample's line of samples.jsonl: id, speaker, texts, audio files and origin."""
        start = int(self._samples["record"][index])
        end = int(self._samples["record"][index + 1]) if index + 1 < len(self) else len(self._records)
        record: dict[str, Any] = json.loads(self._records[start:end].tobytes())
        return record

    def _heard(self, index: int) -> Codes | None:
        if self.heard is None or self.index.first_heard is None:
            return None
        start = int(self.index.first_heard[index])
        return np.array(self.heard[start : start + int(self.reference_frames[index])], dtype=np.uint16)

    def _clip(self, number: int) -> Codes:
        offset, frames = int(self._clips["offset"][number]), int(self._clips["frames"][number])
        return np.array(self.codes[offset : offset + frames], dtype=np.uint16)


def files_of(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of a store beside store.json, by what that one says."""
    return STORE_FILES + (HEARD_FILES if "whisper" in description["made_by"] else ())


def _damaged(file: Path, what: str) -> StepError:
    return StepError(
        f"the store is damaged: this {'folder' if file.is_dir() else 'file'} {what}",
        path=file,
        help="run the prepare step again",
    )
