"""Writing a store: what `higgsc.data.store` describes, whole or not at all."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from higgsc.catalog.codec import CODEBOOKS
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file
from higgsc.data.layout import Segments
from higgsc.data.listener import Listener
from higgsc.data.store import CLIP_ROW, HEARD_FILES, SAMPLE_ROW, STORE_FILE, STORE_FILES, STORE_SCHEMA, Codes


class StoreWriter:
    """Writes a store; a context manager. Only a block that ends well leaves a folder at the destination.

    Codes go to disk as they come. What is kept in memory is one small row a clip and a sample.
    """

    def __init__(self, path: Path, *, made_by: Mapping[str, Any], listener: Listener | None = None) -> None:
        """Prepare to write; nothing is touched before the `with` block.

        Args:
            path: The destination; an earlier store there is replaced at the end.
            made_by: What the content depends on (base, codec, seed); goes to store.json as it is.
            listener: The Whisper that listened to the references, if one did.
        """
        self._path = path
        self._made_by = dict(made_by) | ({} if listener is None else {"whisper": listener.model_dump()})
        self._listener = listener
        self._heard: list[int] = []
        self._clips: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
        self._samples: list[tuple[int, int, int, int, int, int, int, bool, int]] = []
        self._speakers: dict[str, int] = {}
        self._frames = self._words = self._record_bytes = self._rejected = self._heard_frames = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(publish_folder(self._path, marker=STORE_FILE))
            self._codes: BinaryIO = stack.enter_context((self._folder / "codes.u16").open("wb"))
            self._text: BinaryIO = stack.enter_context((self._folder / "text.u32").open("wb"))
            self._records: BinaryIO = stack.enter_context((self._folder / "samples.jsonl").open("wb"))
            self._rejects: BinaryIO = stack.enter_context((self._folder / "rejected.jsonl").open("wb"))
            if self._listener is not None:
                self._features: BinaryIO = stack.enter_context((self._folder / "heard.bf16").open("wb"))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add_clip(self, codes: Codes, *, audio: bytes, heard: Codes | None = None) -> int:
        """Append a clip.

        Args:
            codes: `[T, 8]`, each below 1024.
            audio: SHA-256 of the file that it comes from.
            heard: What the listener heard of each frame, the bits of bfloat16 `[T, width]`; of a reference.

        Returns:
            Its number, which samples refer to.
        """
        if codes.ndim != 2 or codes.shape[1] != CODEBOOKS or not len(codes) or codes.dtype != np.uint16:
            raise ValueError(f"a clip is uint16 [T >= 1, {CODEBOOKS}], not {codes.dtype} {list(codes.shape)}")
        if heard is not None:
            width = 0 if self._listener is None else self._listener.width
            if heard.dtype != np.uint16 or heard.shape != (len(codes), width):
                raise ValueError(f"of {len(codes)} frames {width} numbers each are heard, not {list(heard.shape)}")
            self._features.write(heard.astype("<u2").tobytes())
        self._heard.append(-1 if heard is None else self._heard_frames)
        self._heard_frames += 0 if heard is None else len(heard)
        self._codes.write(codes.astype("<u2").tobytes())
        self._clips.append((self._frames, len(codes), np.frombuffer(audio, dtype=np.uint8)))
        self._frames += len(codes)
        return len(self._clips) - 1

    def add_sample(
        self,
        segments: Segments,
        *,
        reference: int,
        target: int,
        speaker: str,
        validation: bool,
        record: Mapping[str, Any],
    ) -> None:
        """Append a sample; `reference` and `target` are numbers of clips, `record` goes to samples.jsonl."""
        if "id" not in record:
            raise ValueError("the record of a sample has an id")
        if self._listener is not None and self._heard[reference] < 0:
            raise ValueError("a reference is listened to")
        parts = (segments.prefix, segments.middle, segments.suffix)
        for part in parts:
            self._text.write(part.astype("<u4").tobytes())
        lengths = (len(parts[0]), len(parts[1]), len(parts[2]))
        number = self._speakers.setdefault(speaker, len(self._speakers))
        self._samples.append((self._words, *lengths, reference, target, number, validation, self._record_bytes))
        self._words += sum(lengths)
        self._record_bytes += self._records.write(_line({**record, "speaker": speaker}))

    def reject(self, record: Mapping[str, Any]) -> None:
        """Name a sample that is left out."""
        self._rejects.write(_line(record))
        self._rejected += 1

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        # Runs before the files above are closed and the folder is put in place, unless the block failed.
        if kind is not None:
            return
        for stream in (self._codes, self._text, self._records, self._rejects):
            stream.close()
        if not self._samples:
            raise ValueError("a store holds at least one sample")
        rows = np.array(self._samples, dtype=SAMPLE_ROW)
        np.save(self._folder / "clips.npy", np.array(self._clips, dtype=CLIP_ROW))
        np.save(self._folder / "samples.npy", rows)
        names: tuple[str, ...] = STORE_FILES
        if self._listener is not None:
            self._features.close()
            np.save(self._folder / "heard.npy", np.array(self._heard, dtype="<i8"))
            names += HEARD_FILES
        held_out = int(rows["validation"].sum())
        description = {
            "schema": STORE_SCHEMA,
            "counts": {
                "samples": len(rows),
                "train": len(rows) - held_out,
                "validation": held_out,
                "rejected": self._rejected,
                "clips": len(self._clips),
                "frames": self._frames,
                "text_ids": self._words,
            },
            "made_by": self._made_by,
            "speakers": list(self._speakers),
            "files": {
                name: {
                    "size": (self._folder / name).stat().st_size,
                    "sha256": sha256_file(self._folder / name),
                }
                for name in names
            },
        }
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (self._folder / STORE_FILE).write_text(text, "utf-8")


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"
