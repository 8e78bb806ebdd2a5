"""The picture of a distribution, for the validation report's page."""

from __future__ import annotations

import html
import math
import statistics

from higgsc.data.report import histogram

_WIDTH, _HEIGHT = 320, 96
_BINS = 40
_FAR = 8.0
"""Deviations from the median, past which a value is drawn in the last bar."""


def chart(name: str, unit: str, values: list[float]) -> str:
    """A histogram with its lowest, middle and highest value; what lies far out is in the first and last bar."""
    lowest, highest, middle = min(values), max(values), statistics.median(values)
    low, high = _reach(values, middle)
    counts, _, _ = histogram([low, high, *(min(max(value, low), high) for value in values)], bins=_BINS)
    counts[0] -= 1  # the ends are no values
    counts[-1] -= 1
    top, step, width = max(counts), _WIDTH / _BINS, (high - low) / _BINS
    bars = []
    for number, count in enumerate(counts):
        if count:
            tall = max(_HEIGHT * count / top, 1.5)
            start, end = low + number * width, low + (number + 1) * width
            start = lowest if number == 0 else start
            end = highest if number == _BINS - 1 else end
            tail = ' class="tail"' if end - start > 1.01 * width and width else ""
            shown = html.escape(f"{start:,.1f} to {end:,.1f} {unit}: {count:,}")
            bars.append(
                f'<rect{tail} x="{number * step:.1f}" y="{_HEIGHT - tall:.1f}" width="{step - 1:.1f}" '
                f'height="{tall:.1f}"><title>{shown}</title></rect>'
            )
    at = _WIDTH * (middle - low) / (high - low) if high > low else step / 2
    label = f"{name}: {lowest:,.1f} to {highest:,.1f} {unit}, median {middle:,.1f}"
    return (
        f"<figure><figcaption><b>{html.escape(name)}</b> {html.escape(unit)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">{"".join(bars)}'
        f'<line class="base" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"></line>'
        f'<line class="median" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HEIGHT}"></line></svg>'
        f'<div class="axis"><span>{lowest:,.1f}</span><span class="middle">median {middle:,.1f}</span>'
        f"<span>{highest:,.1f}</span></div></figure>"
    )


def _reach(values: list[float], middle: float) -> tuple[float, float]:
    """The range that is drawn to scale: all of it, unless a few far out would squeeze the rest."""
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values) or math.inf
    return max(min(values), middle - _FAR * spread), min(max(values), middle + _FAR * spread)
