"""What people see while a training runs: lines on the screen and in `logs/training.log`, on a terminal a bar too."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

_FORMATS = {
    "epoch": "epoch {:.2f}",
    "loss/total": "loss {:.4g}",
    "loss/audio": "audio {:.4g}",
    "loss/text": "text {:.3g}",
    "loss/contrastive": "contrastive {:.3g}",
    "validation/total_loss": "validation {:.4g}",
    "validation/audio_loss": "validation audio {:.4g}",
    "validation/text_loss": "validation text {:.3g}",
    "grad_norm": "norm {:.3g}",
    "learning_rate": "lr {:.3g}",
    "tokens_per_second": "{:,.0f} tok/s",
    "samples_per_second": "{:.3g} samples/s",
    "speech_hours_per_hour": "{:.3g} h of speech/h",
    "mfu": "MFU {:.1%}",
    "gpu_memory_gb": "{:.1f} GB",
}

logger = logging.getLogger(__name__)


def line(values: Mapping[str, float], eta: float | None = None) -> str:
    """The main figures as one line for people."""
    parts = [form.format(values[name]) for name, form in _FORMATS.items() if name in values]
    return "  ".join([*parts, *([f"ETA {clock(eta)}"] if eta is not None else [])])


def clock(seconds: float) -> str:
    """`0:03:20`, `2 d 0:03:20`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"


class Screen:
    """A bar at the bottom of a terminal, with the newest figures under it; log lines go by above. A context manager.

    Where standard error is no terminal, it does nothing: the lines of the log are all there is to see.
    """

    def __init__(self, *, total: int, start: int, enabled: bool, console: Console | None = None) -> None:
        """
        Args:
            total: Optimizer steps of the training.
            start: Optimizer steps that were done before.
            enabled: False on every process but the first.
            console: Where to draw; standard error if not given.
        """
        console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(),
            TextColumn("{task.description}"), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=start)
        self._figures = Text("", overflow="fold")
        self._live: Live | None = None
        if enabled and console.is_terminal:
            self._live = Live(Group(self._bar, self._figures), console=console, refresh_per_second=4)

    def __enter__(self) -> Screen:
        self._handlers: list[logging.StreamHandler] = []  # type: ignore[type-arg]
        if self._live is not None:
            before = sys.stderr
            self._live.start()
            # rich has put a stream that knows of the bar in the place of standard error; handlers hold on to the old.
            for handler in logging.getLogger().handlers:
                if type(handler) is logging.StreamHandler and handler.stream is before:
                    handler.setStream(sys.stderr)
                    self._handlers.append(handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            for handler in self._handlers:
                handler.setStream(sys.stderr)

    def advance(self, done: int, eta: float | None) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, description="" if eta is None else f"ETA {clock(eta)}")

    def show(self, text: str) -> None:
        """Show the newest figures."""
        self._figures.plain = text


@contextmanager
def training_log(run: Path, *, enabled: bool) -> Iterator[None]:
    """Keep what the trainer logs meanwhile in `<run>/logs/training.log`, and the error that ends it, if one does.

    Args:
        run: The run's folder.
        enabled: False on every process but the first.
    """
    if not enabled:
        yield
        return
    path = run / "logs" / "training.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("higgsc")
    package.addHandler(handler)
    level = package.level
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
    try:
        yield
    except BaseException as error:
        text = str(error) or type(error).__name__
        handler.handle(logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, (), None))
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        try:
            handler.close()
        except OSError as error:
            # Of a full disk, say; it must not stand in front of the error that ended the training.
            logger.warning("%s: the last lines are lost: %s", path, error.strerror)
