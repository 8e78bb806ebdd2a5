"""Figures of a training: summed on the device, read back now and then, written where people look.

    <run>/metrics.jsonl     one JSON object a line, always written
    <run>/tensorboard/      the same figures
    the log                 one short line

Names: `loss/total`, `loss/text`, `loss/audio`, `loss/audio_codebook_0` to `_7`, `learning_rate`, `grad_norm`,
`epoch`, `skipped_steps` (so far; their loss or gradient was not finite), `tokens_per_second`, `samples_per_second`,
`validation/audio_loss`, `validation/text_loss`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from higgsc.catalog.codec import CODEBOOKS
from higgsc.contract.jobs import LossJob
from higgsc.contract.receipts import write_atomically
from higgsc.train.loss import LossSums
from higgsc.train.mesh import Mesh

logger = logging.getLogger(__name__)

_CONSOLE = {"loss/total": "loss", "loss/audio": "audio", "loss/text": "text", "grad_norm": "norm",
            "learning_rate": "lr", "tokens_per_second": "tok/s", "validation/audio_loss": "validation audio",
            "validation/text_loss": "validation text"}  # fmt: skip


class SavedMeter(BaseModel):
    """A stretch of steps that a checkpoint interrupts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sums: tuple[tuple[float, ...], ...]
    """What each process had summed: audio by codebook, then text. Apart, because a sum depends on its order."""
    audio_labels: int
    text_labels: int


class LossMeter:
    """Mean losses over a stretch of steps, without reading anything back from the device meanwhile."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.reset()

    def reset(self) -> None:
        """Start a new stretch."""
        self._sums = torch.zeros(CODEBOOKS + 1, dtype=torch.float64, device=self._mesh.device)
        self._audio_labels = self._text_labels = 0

    def add_sums(self, sums: LossSums) -> None:
        """Add the cross-entropy of one of this process's micro-batches."""
        self._sums += torch.cat((sums.audio.detach(), sums.text.detach()[None]))

    def add_labels(self, audio: int, text: int) -> None:
        """Add labels, counted over all processes."""
        self._audio_labels += audio
        self._text_labels += text

    def save(self) -> SavedMeter:
        """What the stretch holds so far; every process has to ask."""
        sums = tuple(map(tuple, self._mesh.gather(self._sums)))
        return SavedMeter(sums=sums, audio_labels=self._audio_labels, text_labels=self._text_labels)

    def load(self, saved: SavedMeter) -> None:
        """Go on with a saved stretch. Of other processes than now, the first takes over what all had summed."""
        self._audio_labels, self._text_labels = saved.audio_labels, saved.text_labels
        sums = torch.tensor(saved.sums, dtype=torch.float64)
        if len(sums) != self._mesh.world_size:
            others = torch.zeros(self._mesh.world_size - 1, sums.shape[1], dtype=torch.float64)
            sums = torch.cat((sums.sum(dim=0, keepdim=True), others))
        self._sums = sums[self._mesh.rank].to(self._mesh.device)

    def means(self, weights: LossJob) -> dict[str, float]:
        """`loss/...` of the stretch, over all processes; every process has to ask. Empty if no step of it counted."""
        *audio, text = self._mesh.sum(self._sums).tolist()
        if not (self._audio_labels or self._text_labels):
            return {}
        per_codebook = max(self._audio_labels // CODEBOOKS, 1)
        audio_loss = sum(audio) / (CODEBOOKS * per_codebook)
        text_loss = text / max(self._text_labels, 1)
        return {
            "loss/total": weights.audio * audio_loss + weights.text * text_loss,
            "loss/text": text_loss,
            "loss/audio": audio_loss,
            **{f"loss/audio_codebook_{k}": value / per_codebook for k, value in enumerate(audio)},
        }


class MetricsWriter:
    """Writes figures of optimizer steps; used as a context manager, by the first process only.

    On a terminal a progress bar shows the newest audio loss, elsewhere each set of figures is one line of the log.

    Args:
        run: The run's folder.
        total: Optimizer steps of the training.
        start: Optimizer steps that an earlier attempt did. What it wrote about later ones is removed: they come again.
        enabled: False on every process but the first; nothing is written then.
    """

    def __init__(self, run: Path, total: int, *, start: int, enabled: bool) -> None:
        self._run, self._total, self._start, self._enabled = run, total, start, enabled
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=console, disable=not (enabled and console.is_terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> MetricsWriter:
        if self._enabled:
            # TensorBoard takes half a second to import; only the first process needs it.
            from torch.utils.tensorboard import SummaryWriter

            self._run.mkdir(parents=True, exist_ok=True)
            path = self._run / "metrics.jsonl"
            _keep_lines(path, self._start)
            self._lines = path.open("a", encoding="utf-8")
            # Events of later steps stay in their file, but TensorBoard hides them.
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._start + 1)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._bar.stop()
            self._board.close()
            self._lines.close()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._bar.update(self._task, completed=step)

    def flush(self) -> None:
        """Wait until all that was written is on disk."""
        os.fsync(self._lines.fileno())
        self._board.flush()

    def write(self, step: int, values: Mapping[str, float]) -> str:
        """Write the figures of optimizer step `step` (1-based); returns the main ones as a short text.

        Args:
            step: Optimizer steps done.
            values: Figures by name.
        """
        text = "  ".join(f"{short} {values[name]:.4g}" for name, short in _CONSOLE.items() if name in values)
        if not self._enabled:
            return text
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._bar.disable:
            logger.info("step %d/%d  %s", step, self._total, text)
        elif "loss/audio" in values:
            self._bar.update(self._task, description=f"audio loss {values['loss/audio']:.3f}")
        return text


def _keep_lines(path: Path, last: int) -> None:
    """Remove the lines of steps after `last`, and one that a killed process left half-written."""
    if not path.exists():
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))
