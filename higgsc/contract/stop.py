"""Asking a running step to stop: a signal, or a file `<run>/stop`. It saves its work and ends with state `interrupted`.
A file `<run>/save` asks the training for a checkpoint now, without stopping.

Slurm's batch script turns the warning before the time limit into both: the file reaches processes that have not
installed their handlers yet, the signal saves the wait. SIGUSR1 stays with the batch shell, because NCCL has used it.
"""

from __future__ import annotations

import atexit
import signal
import time
from pathlib import Path
from types import FrameType

STOP_FILE = "stop"
SAVE_FILE = "save"
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals that mean: save and stop. A second Ctrl-C ends the process at once."""
SECONDS_OF_ONE_CTRL_C = 2.0
"""A terminal sends SIGINT to torchrun and to its workers, and torchrun passes it on: that is one Ctrl-C, not two."""

_received: dict[int, float] = {}
"""When each signal came first."""


def listen() -> None:
    """Remember signals from here on instead of dying of them; the sooner in a process, the better."""
    for number in SIGNALS:
        signal.signal(number, _note)
    atexit.register(_work_is_over)


def _work_is_over() -> None:
    """Ignore a late SIGUSR2: Python takes its handlers down before it ends, and the process would die of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def interrupt_instead() -> None:
    """End at once by KeyboardInterrupt, now if a signal has come; for steps that cannot stop half-way and go on."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    if _received:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    first = _received.setdefault(number, now)
    if number == signal.SIGINT and now - first > SECONDS_OF_ONE_CTRL_C:
        raise KeyboardInterrupt


def asked_to_stop(run: Path) -> bool:
    """Whether this process was asked to stop. Processes of one step may disagree for a moment: they have to vote.

    Args:
        run: The run's folder.
    """
    return bool(_received) or (run / STOP_FILE).exists()


def request_stop(run: Path) -> None:
    """Ask whatever step of a run is at work to save and stop."""
    run.mkdir(parents=True, exist_ok=True)
    (run / STOP_FILE).touch()


def forget_stop(run: Path) -> None:
    """Take the request back; whoever starts a step does it first."""
    (run / STOP_FILE).unlink(missing_ok=True)


def asked_to_save(run: Path) -> bool:
    """Whether somebody put a file `save` into the run's folder; it is removed when the checkpoint is there."""
    return (run / SAVE_FILE).exists()


def forget_save(run: Path) -> None:
    """The checkpoint that was asked for is there."""
    (run / SAVE_FILE).unlink(missing_ok=True)
