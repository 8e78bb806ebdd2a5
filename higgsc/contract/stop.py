"""Asking a running step to stop: a signal, or a file `<run>/stop`. It saves its work and ends with state `interrupted`.

Slurm's batch script turns the warning before the time limit into both: the file reaches processes that have not
installed their handlers yet, the signal saves the wait. SIGUSR1 stays with the batch shell, because NCCL has used it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

STOP_FILE = "stop"
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals that mean: save and stop. The second SIGINT ends the process at once."""

_received: list[int] = []


def listen() -> None:
    """Install the handlers; the sooner in a process, the better."""
    for number in SIGNALS:
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt
    _received.append(number)


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
