"""Steps whose loss or gradient is not finite: they change nothing, are counted and named, and too many are no accident.

A step that went wrong on any process is skipped on all of them: the optimizer leaves the adapter and its own moments
as they were (`found_inf` of torch's fused AdamW), without the host waiting to hear of it. What is too many:
`IN_A_ROW` such steps one after the other, `IN_WINDOW` of the last `WINDOW`, or most of a short training. It then goes
back to the newest regular checkpoint that a step which counted came after, and leaves out the batches that led from
there to here, as was done for PaLM (Chowdhery et al. 2022, section 5.1): the same batches from the same state would
end in the same place. Where `ROLLBACKS` returns do not bring it `WINDOW` steps further, it stops and names the
samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from higgsc.data.store import Store
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.order import Indices

IN_A_ROW = 5
"""Skipped steps, one after the other."""
IN_WINDOW, WINDOW = 20, 100
"""Skipped steps among the last ones."""
ROLLBACKS = 2
"""Returns to a checkpoint for what may be the same trouble."""
SKIPPED_FILE = "skipped.jsonl"
"""Below the run's folder: one line a skipped step, with the ids of the samples whose loss was not finite."""
_RING = 64  # steps that are remembered on the device; the host asks at least every eighth


class NotFiniteError(Exception):
    """The training has to go back to a checkpoint.

    Args:
        what: What is not finite.
        step: The optimizer step (1-based) at which it was noticed.
    """

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.what, self.step = what, step


class _Look(NamedTuple):
    """What the device is telling the host: flags on their way, and the steps that they are about."""

    flags: Tensor
    arrived: torch.cuda.Event
    done: int


class FiniteGuard:
    """Decides on the device whether a step counts, and tells the host later which ones did not.

    Args:
        mesh: The processes, which all come to the same decisions.
        rows: Micro-batches of a step.
    """

    def __init__(self, mesh: Mesh, rows: int) -> None:
        self._mesh = mesh
        self._bad = torch.zeros(_RING, dtype=torch.bool, device=mesh.device)
        self._bad_rows = torch.zeros(_RING, rows, dtype=torch.bool, device=mesh.device)
        self._look: _Look | None = None
        self.load((), 0)

    def load(self, skipped: tuple[int, ...], done: int) -> None:
        """Start after `done` steps, of which those were skipped."""
        self.skipped = list(skipped)
        """Optimizer steps (1-based) that did not count, as far as the host knows."""
        self._known = done
        self._look = None

    def watch(self, step: int, norm: Tensor, losses: list[Tensor]) -> Tensor:
        """Judge optimizer step `step` (1-based) by the gradient's norm and the losses of this process's rows.

        Returns:
            float32 scalar on the device, the same on all processes: 1 if the step is to be skipped, otherwise 0.
        """
        rows = ~torch.stack(losses).detach().isfinite()
        fine = ~rows.any() & norm.detach().isfinite()
        bad = 1.0 - self._mesh.minimum(fine.float())
        self._bad[step % _RING] = bad > 0
        self._bad_rows[step % _RING] = rows
        return bad

    def news(self, done: int, *, wait: bool) -> list[int]:
        """The skipped steps up to `done` that were not known yet; every process has to ask.

        Args:
            done: Optimizer steps done.
            wait: Whether to wait for the device. Otherwise a GPU answers for the steps up to the last time.
        """
        if wait or self._mesh.device.type != "cuda":
            self._look = None
            return self._read(self._bad.tolist(), done)
        before = self._look
        flags = torch.empty(_RING, dtype=torch.bool, pin_memory=True)
        flags.copy_(self._bad, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._look = _Look(flags, arrived, done)
        if before is None:
            return []
        before.arrived.synchronize()
        return self._read(before.flags.tolist(), before.done)

    def _read(self, flags: list[bool], done: int) -> list[int]:
        new = [step for step in range(self._known + 1, done + 1) if flags[step % _RING]]
        self._known = max(self._known, done)
        self.skipped += new
        return new

    def judge(self, new: list[int]) -> None:
        """Whether newly skipped steps are too many, each looked at in its turn.

        Raises:
            NotFiniteError: For the first step that is one too many, so that it does not matter when it is noticed.
        """
        for step in new:
            recent = [bad for bad in self.skipped if step - WINDOW < bad <= step]
            in_a_row = recent[-IN_A_ROW:] == list(range(step - IN_A_ROW + 1, step + 1))
            if in_a_row or len(recent) >= IN_WINDOW:
                raise NotFiniteError("the loss or a gradient", step)

    def judge_end(self, total: int) -> None:
        """Whether a training that is too short for the other limits has skipped most of its steps.

        Raises:
            NotFiniteError: If it has.
        """
        if 2 * len(self.skipped) > total:
            raise NotFiniteError("the loss or a gradient", total)

    def samples(self, step: int, rows: Sequence[Sequence[Indices]]) -> list[int]:
        """The samples of a skipped step whose loss was not finite, on any process; every process has to ask.

        Args:
            step: The optimizer step (1-based); one of those that were just reported.
            rows: The rows of it of every share of the data, each with its samples.

        Returns:
            Numbers in the store, ascending; empty if the losses were finite and only the gradient was not.
        """
        flags = self._mesh.gather(self._bad_rows[step % _RING].double())
        found = {
            int(number)
            for bad, shares in zip(flags, rows, strict=True)
            for flag, row in zip(bad, shares, strict=True)
            for number in (row if flag else ())
        }
        return sorted(found)


def record_skipped(run: Path, step: int, samples: list[int], batch: Indices, store: Store) -> list[str]:
    """Note a skipped step in `<run>/skipped.jsonl`, once, however often it comes again.

    Args:
        run: The run's folder.
        step: The optimizer step (1-based).
        samples: Those whose loss was not finite; empty if only the gradient was not.
        batch: All samples of the step.
        store: Knows their ids.

    Returns:
        The ids.
    """
    ids = [str(store.record(int(index))["id"]) for index in (samples or batch)]
    cause = "the loss was not finite" if samples else "the gradient was not finite"
    line = json.dumps({"step": step, "cause": cause, "samples": ids}, ensure_ascii=False) + "\n"
    path = run / SKIPPED_FILE
    if not path.exists() or line not in path.read_text("utf-8").splitlines(keepends=True):
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line)
    return ids
