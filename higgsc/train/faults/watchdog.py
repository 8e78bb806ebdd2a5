"""Where a process hangs: its Python stacks, written to `<run>/logs/stacks-<rank>.txt` before the others give it up.

A collective that waits for a process which hangs fails after `parallel.contact.step_timeout()`, and takes the whole
training down. By then every process that is not frozen altogether has written down where it stands, the one that hangs
among them. NCCL's own record of the collectives goes to `<run>/logs/nccl-trace-<rank>` (`torchfrtrace` reads them).
"""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from types import TracebackType

SHARE = 0.8
"""Of the timeout after which a silent process writes: soon enough to be there when it is ended."""


class Watchdog:
    """Writes a process's stacks unless it is heard of in time; used as a context manager.

    Args:
        logs: The folder of the file.
        rank: Of the process.
        timeout: After how many seconds of silence the others give it up.
    """

    def __init__(self, logs: Path, rank: int, timeout: float) -> None:
        self.path, self._seconds = logs / f"stacks-{rank}.txt", SHARE * timeout

    def __enter__(self) -> Watchdog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a", encoding="utf-8")
        return self

    def heard(self) -> None:
        """The process is alive; count from here. Before the first time, nothing is counted."""
        faulthandler.dump_traceback_later(self._seconds, file=self._stream)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._stream.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()


def record_collectives(logs: Path) -> None:
    """Have NCCL keep a record of its collectives, and leave it in the logs if one times out; before it starts."""
    logs.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(logs / "nccl-trace-"))
