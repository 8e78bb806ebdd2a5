"""Figures and times as people read them, and tables."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from higgsc.compiler.render.text import display_width


def duration(seconds: float) -> str:
    """`42 s`, `6 min`, `1 h 50 min`, `3 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def ago(iso: str) -> str:
    """`2 h ago`."""
    return f"{duration(max(0.0, time.time() - datetime.fromisoformat(iso).timestamp()))} ago"


def clock(epoch: float) -> str:
    """The hour of a time today, and the day of any other."""
    there, today = datetime.fromtimestamp(epoch), datetime.now()
    return there.strftime("%H:%M" if there.date() == today.date() else "%a %d %b %H:%M")


def rate(per_second: float) -> str:
    """`44.8k`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.1f}{unit}"
    return f"{per_second:.0f}"


def size(number: int) -> str:
    """`640 B`, `12.3 kB`, `2.52 GB`: bytes, in powers of ten as disks are sold."""
    for step, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= step:
            return f"{number / step:.3g} {unit}"
    return f"{number} B"


def count(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Aligned columns; empty ones are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(display_width(cell) for cell in column) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = (cell + " " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=True))
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
