"""Pictures as SVG inside the page: the shape of a recording, and figures over the steps of a training."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_WIDTH = 320
_WAVE_HEIGHT, _WAVE_COLUMNS = 44, 160
_CURVE_HEIGHT = 120
_POINTS = 400
"""Of a curve; more could not be told apart."""

Curve = Sequence[tuple[int, float]]
"""Values by step, in order."""


def waveform(samples: npt.NDArray[np.float32]) -> str:
    """The highest and lowest values along a recording, full scale from edge to edge.

    Args:
        samples: `[N]`, at least one.
    """
    bars = []
    step = _WIDTH / _WAVE_COLUMNS
    for number, piece in enumerate(np.array_split(samples, min(_WAVE_COLUMNS, len(samples)))):
        high, low = min(float(piece.max()), 1.0), max(float(piece.min()), -1.0)
        y, height = _WAVE_HEIGHT / 2 * (1 - high), max(_WAVE_HEIGHT / 2 * (high - low), 0.6)
        bars.append(f'<rect x="{number * step:.1f}" y="{y:.1f}" width="{step - 0.5:.1f}" height="{height:.1f}"></rect>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_WAVE_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="waveform">'
        f"{''.join(bars)}</svg>"
    )


def curves(name: str, shown: Mapping[str, Curve]) -> str:
    """Figures over the steps of a training, to one scale; what is not finite is left out.

    Args:
        name: What they are figures of.
        shown: One or two curves by what they are called; those without a value are left out.

    Returns:
        Markup; empty if there is nothing to draw.
    """
    lines = {label: _thinned([point for point in curve if math.isfinite(point[1])]) for label, curve in shown.items()}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return ""
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)

    def place(step: int, value: float) -> str:
        x = _WIDTH * (step - first) / (last - first) if last > first else _WIDTH / 2
        y = _CURVE_HEIGHT * (high - value) / (high - low) if high > low else _CURVE_HEIGHT / 2
        return f"{x:.1f},{y:.1f}"

    drawn, legend = [], []
    for number, (label, points) in enumerate(lines.items()):
        told = f"{label}: {points[0][1]:.3g} at step {points[0][0]}, {points[-1][1]:.3g} at step {points[-1][0]}"
        path = " ".join(place(*point) for point in points)
        dots = "".join(
            f'<circle class="line{number}" cx="{x}" cy="{y}" r="2.5"><title>{value:.4g} at step {step}</title></circle>'
            for step, value in (points if len(points) <= 40 else points[-1:])
            for x, y in (place(step, value).split(","),)
        )
        drawn.append(
            f'<polyline class="line{number}" points="{path}"><title>{html.escape(told)}</title></polyline>{dots}'
        )
        legend.append(f'<span class="line{number}">{html.escape(label)} <b>{points[-1][1]:.3g}</b></span>')
    label = f"{name} from step {first} to {last}, between {low:.3g} and {high:.3g}"
    return (
        f'<figure class="curves"><figcaption><b>{html.escape(name)}</b> {"".join(legend)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_CURVE_HEIGHT}" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(drawn)}'
        f'<line class="base" x1="0" x2="{_WIDTH}" y1="{_CURVE_HEIGHT}" y2="{_CURVE_HEIGHT}"></line></svg>'
        f'<div class="axis"><span>step {first}</span><span>{low:.3g} to {high:.3g}</span><span>step {last}</span></div>'
        "</figure>"
    )


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `_POINTS` of them: means of neighbours, and the last as it is."""
    if len(points) <= _POINTS:
        return points
    size = -(-len(points) // (_POINTS - 1))
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    middle = [(group[len(group) // 2][0], sum(value for _, value in group) / len(group)) for group in groups]
    return [*middle, points[-1]]
