"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import soundfile
import torch
from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes `<run>/tensorboard/`.

    Args:
        run: The run's folder.
        start: The last step whose figures are valid; those of later ones, from an earlier attempt, come again. They
            stay in their file, but TensorBoard hides them.
    """

    def __init__(self, run: Path, *, start: int) -> None:
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def speech(self, step: int, name: str, wav: Path, caption: str) -> None:
        wave, rate = soundfile.read(wav, dtype="float32")
        if len(wave):  # it cannot show silence of no length; the caption says that nothing was spoken
            self._writer.add_audio(name, torch.from_numpy(wave)[None], step, sample_rate=rate)
        self._writer.add_text(name, caption, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
