"""The validation report for a terminal and for programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from higgsc.data.structure import Problem
from higgsc.data.validate import Recording, Report, characters_per_second

_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 24


UNITS: Mapping[str, str] = {
    "length": "seconds",
    "text": "characters",
    "speed": "characters/s",
    "loudness": "LUFS",
    "peak": "of full scale",
    "silence": "% of 20 ms frames",
}
"""Of what there is a distribution of."""


def figures(report: Report) -> dict[str, list[float]]:
    """What there is a distribution of, by the names of `UNITS`."""
    found = [recording.finding for recording in report.recordings]
    named: dict[str, list[float]] = {
        "length": [finding.seconds for finding in found if finding.seconds is not None],
        "text": [float(count) for count in report.structure.characters],
        "speed": [characters_per_second(recording) for recording in report.recordings],
        "loudness": [finding.loudness for finding in found if finding.loudness is not None],
        "peak": [finding.peak for finding in found if finding.peak is not None],
        "silence": [100 * finding.silence for finding in found if finding.silence is not None],
    }
    return {name: values for name, values in named.items() if values}


def histogram(values: list[float], bins: int = _BINS) -> tuple[list[int], float, float]:
    """Counts in bins of equal width, and the lowest and highest value."""
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return counts, low, high


def render_text(report: Report) -> str:
    """The report for people, in lines."""
    structure = report.structure
    what = {"rows": "rows only", "headers": f"headers of {report.files:,} recordings"}.get(
        report.depth, f"{report.files:,} recordings decoded"
    )
    lines = [f"{structure.samples:,} samples, {report.bad:,} bad ({_share(report)}); {what}"]
    if report.seconds:
        named = sum(bool(speaker) for speaker in structure.speakers)
        lines.append(f"  {report.seconds / 3600:.2f} h of target audio, {named:,} speakers")
    lines += _problems("errors: preparation would leave these out", report.errors)
    lines += _problems("warnings: usable, and odd", report.warnings)
    if report.changes:
        changes = ", ".join(f"{kind} {count:,}" for kind, count in report.changes.most_common())
        lines += ["the text clean-up changes", f"  {changes}"]
    if shown := figures(report):
        lines.append("distributions of the good samples")
        labels = {name: f"{name} ({UNITS[name]})" for name in shown}
        width = max(map(len, labels.values()))
        for name, values in shown.items():
            counts, low, high = histogram(values)
            top, middle = max(counts), statistics.median(values)
            bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in counts)
            lines.append(f"  {labels[name]:{width}}  {low:8.1f} {bars} {high:<8.1f} median {middle:.1f}")
    limit = f"{report.max_bad_fraction:.2%} may be bad"
    lines.append(f"passed: {limit}" if report.passed else f"failed: {limit}")
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "depth": report.depth,
        "passed": report.passed,
        "samples": report.samples,
        "bad": report.bad,
        "max_bad_fraction": report.max_bad_fraction,
        "recordings": report.files,
        "target_seconds": round(report.seconds, 3),
        "speakers": dict(report.structure.speakers.most_common()),
        "errors": _plain(report.errors),
        "warnings": _plain(report.warnings),
        "text_changes": dict(report.changes),
        "figures": {name: _summary(UNITS[name], values) for name, values in figures(report).items()},
    }


def worst(report: Report, count: int = 24) -> list[tuple[Recording, tuple[str, ...]]]:
    """The usable samples with the most that is odd about them, and what that is; in the order of the data."""
    odd = [(one, tuple(report.odd[one.place])) for one in report.recordings if one.place in report.odd]
    return sorted(odd, key=lambda pair: -len(pair[1]))[:count]


def _share(report: Report) -> str:
    return f"{report.bad / report.samples:.2%}" if report.samples else "no samples"


def _problems(title: str, problems: Mapping[str, Problem]) -> Iterable[str]:
    if not problems:
        return
    yield title
    for cause, problem in sorted(problems.items(), key=lambda item: -item[1].count):
        yield f"  {problem.count:,} × {cause}"
        yield from (f"      {example}" for example in problem.examples)


def _plain(problems: Mapping[str, Problem]) -> dict[str, Any]:
    ordered = sorted(problems.items(), key=lambda item: -item[1].count)
    return {cause: {"count": problem.count, "examples": problem.examples} for cause, problem in ordered}


def _summary(unit: str, values: list[float]) -> dict[str, Any]:
    counts, low, high = histogram(values)
    return {"unit": unit, "min": low, "max": high, "median": statistics.median(values), "histogram": counts}
