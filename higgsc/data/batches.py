"""The samples of a data file, many at a time where nothing has to be done to each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from higgsc.data.formats.reading import Batch, Read, read_batches
from higgsc.data.samples import SourceFile

_TOGETHER = 256


def batches_of(source: SourceFile, *, root: Path) -> Iterator[Batch | list[Read]]:
    """The samples of `SourceFile.records`, in the same order.

    Raises:
        StepError: The file is missing (66), cannot be read, or is of no known format (65).
    """
    if source.speaker is None and source.pairing is None:
        return read_batches(source.path, source.format, root=root)
    records = source.records(root=root)
    return iter(lambda: list(islice(records, _TOGETHER)), [])
