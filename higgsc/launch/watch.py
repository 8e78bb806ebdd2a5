"""Follow a running step by its heartbeat: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from higgsc.contract.heartbeat import Heartbeat, read_heartbeat

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_LINES = 15.0


class Watcher:
    """Shows one step's progress on stderr while it runs."""

    def __init__(self, step: str, title: str, run: Path) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.step, self.title, self.run = step, title, run
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        self.progress = Progress(
            TextColumn("  {task.fields[step]:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.task = self.progress.add_task("", total=None, step=step, message=title)
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Show progress until the process ends; its exit code, as a shell counts it (128 + signal)."""
        while True:
            try:
                code = process.wait(SECONDS_BETWEEN_LOOKS)
            except subprocess.TimeoutExpired:
                self._show(read_heartbeat(self.run))
                continue
            return code if code >= 0 else 128 - code

    def _show(self, beat: Heartbeat | None) -> None:
        if beat is None or beat.step != self.step:
            return
        if self.live:
            self.progress.update(self.task, completed=beat.done, total=beat.total, message=beat.message or self.title)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            of = f"/{beat.total}" if beat.total is not None else ""
            print(f"  {self.step:<9} {beat.done}{of} {beat.unit} {beat.message}", file=sys.stderr, flush=True)
