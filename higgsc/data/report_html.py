"""The validation report as one page that needs nothing else: histograms as SVG, players for the worst samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from higgsc.data.page.document import document, player, section, spoken, text, tiles, write_whole
from higgsc.data.report import UNITS, figures, worst
from higgsc.data.report_svg import chart
from higgsc.data.structure import Problem
from higgsc.data.validate import Recording, Report, characters_per_second

_PLAYED_SECONDS = 12
"""Of each of the worst samples: the page holds the sound itself."""
_SPEAKERS = 12
_DEPTHS = {"rows": "rows alone, no audio", "headers": "rows and the headers of recordings", "full": "all of it decoded"}


def write_page(report: Report, path: Path, *, title: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_whole(path, page(report, title=title))


def page(report: Report, *, title: str) -> str:
    """The page as text."""
    verdict = "passed" if report.passed else "failed"
    charts = "".join(chart(name, UNITS[name], values) for name, values in figures(report).items())
    head = (
        f'<h1 dir="auto">{text(title)}</h1><span class="verdict {verdict}">{verdict}</span>'
        f'<span class="soft">Speech data, {_DEPTHS[report.depth]}. '
        f"{report.max_bad_fraction:.2%} of the samples may be bad.</span>"
    )
    far = "of the good samples; the line is the median, bars in its colour hold what lies far out"
    parts = [
        _tiles(report),
        _problems("Errors", "preparation leaves these samples out", "error", report.errors),
        _problems("Warnings", "usable, and odd", "warning", report.warnings),
        section("Distributions", far, f'<div class="charts">{charts}</div>') if charts else "",
        _samples(report),
        _counts("Speakers", "those with the most samples", dict(report.structure.speakers.most_common(_SPEAKERS))),
        _counts("Text clean-up", "what it changes, and how often", dict(report.changes.most_common())),
    ]
    return document(f"{title}: {verdict}", head, "\n".join(filter(None, parts)))


def _tiles(report: Report) -> str:
    good = report.samples - report.bad
    shown = [("samples", f"{report.samples:,}", ""), ("usable", f"{good:,}", "")]
    share = f"{report.bad / report.samples:.2%}" if report.samples else "all"
    shown.append((f"bad, {share}", f"{report.bad:,}", "" if report.passed else "failed"))
    if report.seconds:
        hours = report.seconds >= 3600
        shown.append(
            ("of speech", f"{report.seconds / 3600:,.1f} h" if hours else f"{report.seconds / 60:.1f} min", "")
        )
    shown.append(("speakers", f"{sum(bool(name) for name in report.structure.speakers):,}", ""))
    if report.files:
        shown.append(("recordings", f"{report.files:,}", ""))
    return tiles(shown)


def _problems(title: str, note: str, kind: str, problems: Mapping[str, Problem]) -> str:
    if not problems:
        return ""
    boxes = "".join(
        f'<details class="problem {kind}"{_opened(number)}><summary><b>{problem.count:,}</b>'
        f'<span dir="auto">{text(cause)}</span></summary><ul>'
        + "".join(f'<li><code dir="auto">{text(example)}</code></li>' for example in problem.examples)
        + (f'<li class="soft">and {more:,} more</li>' if (more := problem.count - len(problem.examples)) else "")
        + "</ul></details>"
        for number, (cause, problem) in enumerate(sorted(problems.items(), key=lambda item: -item[1].count))
    )
    return section(title, note, f'<div class="problems">{boxes}</div>')


def _opened(number: int) -> str:
    return ' open="open"' if number == 0 else ""


def _counts(title: str, note: str, counts: Mapping[str, int]) -> str:
    if not any(counts):
        return ""
    rows = "".join(
        f'<tr><td class="count">{count:,}</td><td dir="auto">{text(name or "no name")}</td></tr>'
        for name, count in counts.items()
    )
    return section(title, note, f"<table>{rows}</table>")


def _samples(report: Report) -> str:
    cards = "".join(_card(recording, kinds) for recording, kinds in worst(report))
    note = f"usable, with the most that is odd about them; the first {_PLAYED_SECONDS} seconds"
    return section("The oddest samples", note, f'<div class="samples">{cards}</div>') if cards else ""


def _card(recording: Recording, kinds: tuple[str, ...]) -> str:
    finding = recording.finding
    marks = "".join(f'<span class="kind">{text(kind)}</span>' for kind in kinds)
    facts = [f"{finding.seconds or 0:.1f} s", f"{characters_per_second(recording):.1f} characters/s"]
    facts += [f"{finding.loudness:.0f} LUFS"] if finding.loudness is not None else []
    facts += [f"{finding.rate / 1000:g} kHz"] if finding.rate else []
    return (
        '<article class="sample">'
        + f'<div class="kinds">{marks}</div>'
        + f"{spoken(recording.text)}{_player(recording)}"
        + f'<div class="facts soft">{"".join(f"<span>{fact}</span>" for fact in facts)}'
        + f'<bdi>{text(recording.speaker)}</bdi></div><code dir="auto">{text(recording.id)}</code>'
        + f'<code class="soft">{text(recording.place)}</code></article>'
    )


def _player(recording: Recording) -> str:
    """Shape and sound; nothing where the recording was not decoded and so may not be sound."""
    if recording.finding.content is None:
        return ""
    return player(*_start_of(recording))


def _start_of(recording: Recording) -> tuple[npt.NDArray[np.float32], int]:
    """The start of a recording, mono, `[N]`, and its rate."""
    span = recording.audio
    with soundfile.SoundFile(span.path) as stream:
        rate = int(stream.samplerate)
        stream.seek(round((span.offset or 0.0) * rate))
        seconds = min(span.duration or _PLAYED_SECONDS, _PLAYED_SECONDS)
        block = stream.read(round(seconds * rate), dtype="float32", always_2d=True)
    return np.clip(block.mean(axis=1), -1, 1), rate
