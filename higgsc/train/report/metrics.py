"""Figures of a training: summed on the device, read back now and then, written where people look.

    <run>/metrics.jsonl     one JSON object a line, always written
    trackers                the same figures, where the spec says: TensorBoard, W&B, trackio

Names: `loss/total`, `loss/text`, `loss/audio`, `loss/audio_codebook_0` to `_7`, `loss/contrastive`;
`validation/total_loss`, `validation/text_loss`, `validation/audio_loss`, `validation/audio_codebook_0` to `_7`;
`learning_rate`, `grad_norm`, `epoch`, `skipped_steps` (so far; their loss or gradient was not finite); and those of
`speed.py`: `tokens_per_second`, `samples_per_second`, `speech_hours_per_hour`, `mfu`, `gpu_memory_gb`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from pydantic import BaseModel, ConfigDict

from higgsc.catalog.codec import CODEBOOKS
from higgsc.contract.jobs import LossJob, TrainJob
from higgsc.contract.receipts import write_atomically
from higgsc.train.objective.loss import LossSums, weighted
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.report.tracking.open import open_trackers
from higgsc.train.report.tracking.tracker import Guarded


class SavedMeter(BaseModel):
    """A stretch of steps that a checkpoint interrupts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sums: tuple[tuple[float, ...], ...]
    """What each share of the data had summed: audio by codebook, text, contrastive, and the three with their weights.
    Apart, because a sum depends on its order."""
    audio_labels: int
    text_labels: int
    anchors: int


class LossMeter:
    """Mean losses over a stretch of steps, without reading anything back from the device meanwhile."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.reset()

    def reset(self) -> None:
        """Start a new stretch."""
        self._sums = torch.zeros(CODEBOOKS + 5, dtype=torch.float64, device=self._mesh.device)
        self._audio_labels = self._text_labels = self._anchors = 0

    def add_sums(self, sums: LossSums, weights: LossJob) -> None:
        """Add the cross-entropy of one of this process's micro-batches, and the weights that it counted with."""
        sums = LossSums(*(part.detach() for part in sums))
        self._sums += torch.cat((sums.audio, sums.text[None], sums.contrastive[None], weighted(sums, weights)))

    def add_labels(self, audio: int, text: int, anchors: int) -> None:
        """Add labels, and samples with a contrastive loss, counted over all processes."""
        self._audio_labels += audio
        self._text_labels += text
        self._anchors += anchors

    def save(self) -> SavedMeter:
        """What the stretch holds so far; every process has to ask."""
        sums = tuple(map(tuple, self._mesh.gather(self._sums)))
        return SavedMeter(
            sums=sums, audio_labels=self._audio_labels, text_labels=self._text_labels, anchors=self._anchors
        )

    def load(self, saved: SavedMeter) -> None:
        """Go on with a saved stretch. Of more or fewer shares of the data, the first takes over what all had summed."""
        self._audio_labels, self._text_labels, self._anchors = saved.audio_labels, saved.text_labels, saved.anchors
        sums = torch.tensor(saved.sums, dtype=torch.float64)
        if len(sums) != self._mesh.data_size:
            others = torch.zeros(self._mesh.data_size - 1, sums.shape[1], dtype=torch.float64)
            sums = torch.cat((sums.sum(dim=0, keepdim=True), others))
        self._sums = sums[self._mesh.data_rank].to(self._mesh.device)

    def means(self) -> dict[str, float]:
        """`loss/...` of the stretch, over all processes; every process has to ask. Empty if no step of it counted.

        The total is with the weights of the steps, the parts are without any. A part without labels is 0;
        `loss/contrastive` is left out where no sample had another speaker beside it.
        """
        *audio, text, contrastive, total_audio, total_text, total_contrastive = self._mesh.sum(self._sums).tolist()
        if not (self._audio_labels or self._text_labels):
            return {}
        per_codebook = max(self._audio_labels // CODEBOOKS, 1)
        text_labels = max(self._text_labels, 1)
        anchors = max(self._anchors, 1)
        total = total_audio / (CODEBOOKS * per_codebook) + total_text / text_labels + total_contrastive / anchors
        return {
            "loss/total": total,
            "loss/text": text / text_labels,
            "loss/audio": sum(audio) / (CODEBOOKS * per_codebook),
            **({"loss/contrastive": contrastive / anchors} if self._anchors else {}),
            **{f"loss/audio_codebook_{k}": value / per_codebook for k, value in enumerate(audio)},
        }


class MetricsWriter:
    """Writes figures of optimizer steps; used as a context manager, by the first process only.

    Args:
        job: Says which trackers show the figures.
        run: The run's folder.
        start: The last optimizer step whose figures an earlier attempt wrote for good. What it wrote about later ones
            is removed: they come again.
        enabled: False on every process but the first; nothing is written then.
    """

    def __init__(self, job: TrainJob, run: Path, *, start: int, enabled: bool) -> None:
        self._job, self._run, self._start, self._enabled = job, run, start, enabled
        self._trackers: list[Guarded] = []

    def __enter__(self) -> MetricsWriter:
        if self._enabled:
            self._run.mkdir(parents=True, exist_ok=True)
            path = self._run / "metrics.jsonl"
            _keep_lines(path, self._start)
            self._lines = path.open("a", encoding="utf-8")
            self._trackers = open_trackers(self._job, self._run, start=self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._lines.close()
        for tracker in self._trackers:
            tracker.close()

    def flush(self) -> None:
        """Wait until all that was written is on disk."""
        if self._enabled:
            os.fsync(self._lines.fileno())
        for tracker in self._trackers:
            tracker.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures of optimizer step `step` (1-based).

        Args:
            step: Optimizer steps done.
            values: Figures by name.
        """
        if not self._enabled:
            return
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._lines.flush()
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        """Show a recording, made after `step` optimizer steps."""
        for tracker in self._trackers:
            tracker.speech(step, name, wav, caption)


def _keep_lines(path: Path, last: int) -> None:
    """Remove the lines of steps after `last`, and one that a killed process left half-written."""
    if not path.exists():
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))
