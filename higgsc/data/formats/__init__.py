"""Readers of data files, one module a format, chosen by name or by looking at the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from higgsc.contract.outcome import StepError
from higgsc.data.formats import chatml
from higgsc.data.formats.objects import read_objects
from higgsc.data.records import CloningSample, Rejected

Reader = Callable[..., Iterator[CloningSample | Rejected]]
"""`reader(path, root=...)`: the samples of a data file in order, each usable or rejected."""

READERS: Mapping[str, Reader] = MappingProxyType({"chatml": chatml.read})


def read(path: Path, format_name: str, *, root: Path) -> Iterator[CloningSample | Rejected]:
    """Read a data file.

    Args:
        path: The data file.
        format_name: A key of `READERS`, or `auto` to look at its first sample.
        root: The project root, inside which audio may lie.

    Raises:
        StepError: The file is missing (66), cannot be read, or is of no known format (65).
    """
    name = detect(path) if format_name == "auto" else format_name
    if name not in READERS:
        raise StepError(
            f"unknown data format {name!r}", path=path, help=f"known are auto, {', '.join(sorted(READERS))}"
        )
    return READERS[name](path, root=root)


def detect(path: Path) -> str:
    """Name the format of a data file by its first element that is JSON.

    Raises:
        StepError: The file is missing (66), cannot be read, or is of no known format (65).
    """
    for element in read_objects(path):
        if element.problem is not None:
            continue
        value = element.value
        if isinstance(value, dict) and isinstance(value.get("messages"), list):
            return "chatml"
        seen = f"the fields {', '.join(map(repr, value))}" if isinstance(value, dict) else repr(value)[:60]
        raise StepError(
            f"unknown data format: the first sample has {seen}, and no list `messages`",
            path=path,
            line=element.line,
            help=f"known formats: {', '.join(sorted(READERS))}",
        )
    raise StepError("unknown data format: no line holds a JSON object", path=path)
