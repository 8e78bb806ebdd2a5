"""Samples that are left out: counted, named, and too many of them stop the step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from higgsc.contract.jobs import StepContext
from higgsc.contract.outcome import StepError
from higgsc.contract.receipts import write_atomically
from higgsc.data.records import Rejected

_log = logging.getLogger(__name__)

_CAUSES_SHOWN = 5


class Rejects:
    """The rejected samples of a run, and the share of them that its user allows."""

    def __init__(self, context: StepContext, *, run: str, max_fraction: float, name: Callable[[Path], str]) -> None:
        """Start with none.

        Args:
            context: Of the step.
            run: The run's folder; gets `rejected.jsonl` if the step stops over them.
            max_fraction: Share of all samples that may be rejected, 0 to 1.
            name: What to call a data file.
        """
        self.total: int | None = None
        """Number of all samples, rejected or not; None until all data files are read."""
        self._max_fraction, self._name = max_fraction, name
        self._list = context.path(run) / "rejected.jsonl"
        self._rejected: list[Rejected] = []
        # What an earlier attempt left would tell of samples that are mended by now.
        self._list.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._rejected)

    def add(self, rejected: Rejected) -> None:
        """Leave a sample out.

        Raises:
            StepError: It is one too many.
        """
        self._rejected.append(rejected)
        _log.warning("left out %s", self._describe(rejected))
        self.check()

    def check(self) -> None:
        """Stop if too many samples are rejected; never before their total number is known.

        Raises:
            StepError: Their share is above the limit, or no sample is left. Names the first few, and where all
                of them are listed.
        """
        if self.total is None or not self._rejected:
            return
        count = len(self._rejected)
        if count / self.total <= self._max_fraction and count < self.total:
            return
        write_atomically(self._list, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.records()))
        causes = [f"\n  {self._describe(rejected)}" for rejected in self._rejected[:_CAUSES_SHOWN]]
        if count > _CAUSES_SHOWN:
            causes.append(f"\n  and {count - _CAUSES_SHOWN} more")
        raise StepError(
            f"{count} of {self.total} samples are bad, above the limit of {self._max_fraction:.2%}" + "".join(causes),
            help=f"all are listed in {self._name(self._list)}; mend them, or raise "
            "`data.limits.max_bad_fraction` to go on without them",
        )

    def records(self) -> list[dict[str, Any]]:
        """Id, file, line and reason of each, in the order of the data."""
        ordered = sorted(self._rejected, key=lambda rejected: (str(rejected.source), rejected.line))
        return [
            {
                "id": rejected.id,
                "source": self._name(rejected.source),
                "line": rejected.line,
                "reason": rejected.reason,
            }
            for rejected in ordered
        ]

    def _describe(self, rejected: Rejected) -> str:
        return f"{self._name(rejected.source)}:{rejected.line}: {rejected.id}: {rejected.reason}"
