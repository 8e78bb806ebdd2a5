"""The validation report as one page that needs nothing else: histograms as SVG, players for the worst samples."""

from __future__ import annotations

import base64
import html
import io
import statistics
from pathlib import Path

import numpy as np
import soundfile

from higgsc.data.report import figures, histogram, worst
from higgsc.data.structure import Problem
from higgsc.data.validate import Recording, Report

_PLAYED_SECONDS = 12
"""Of each of the worst samples: the page holds the sound itself."""
_WIDTH, _HEIGHT = 320, 90
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.verdict { padding: .2rem .6rem; border-radius: .4rem; color: #fff; background: #1a7f37 }
.verdict.failed { background: #b3261e }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem } figure { margin: 0 }
figcaption, .axis { font-size: .85rem; color: GrayText } rect { fill: #3b6fb6 }
table { border-collapse: collapse; width: 100% } td, th { text-align: start; padding: .3rem .6rem; vertical-align: top;
border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
td.count { text-align: end; font-variant-numeric: tabular-nums } code { font-size: .85rem; overflow-wrap: anywhere }
audio { width: 230px; height: 34px } .text { font-size: 1.05rem }
"""


def write_page(report: Report, path: Path, *, title: str) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page(report, title=title), "utf-8")
    temporary.replace(path)


def page(report: Report, *, title: str) -> str:
    """The page as text."""
    verdict = "passed" if report.passed else "failed"
    hours = f"{report.seconds / 3600:.2f} h of target audio, " if report.seconds else ""
    speakers = sum(bool(name) for name in report.structure.speakers)
    charts = "".join(_chart(name, values) for name, values in figures(report).items())
    changes = ", ".join(f"{html.escape(kind)} {count:,}" for kind, count in report.changes.most_common())
    players = "".join(_player(recording, kinds) for recording, kinds in worst(report))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<title>{html.escape(title)}: validation</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)} <span class="verdict {verdict}">{verdict}</span></h1>
<p>{report.samples:,} samples, {report.bad:,} bad ({report.max_bad_fraction:.2%} may be); {hours}{speakers:,} speakers;
{report.files:,} recordings looked at ({html.escape(report.depth)}).</p>
<div class="charts">{charts}</div>
{_table("Errors: preparation would leave these out", report.errors)}
{_table("Warnings: usable, and odd", report.warnings)}
{f"<h2>The text clean-up changes</h2><p>{changes}</p>" if changes else ""}
{f"<h2>The oddest samples</h2><table>{players}</table>" if players else ""}
</body></html>
"""


def _chart(name: str, values: list[float]) -> str:
    counts, low, high = histogram(values, bins=40)
    top, step = max(counts), _WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{number * step:.1f}" y="{_HEIGHT * (1 - count / top):.1f}" width="{step - 1:.1f}" '
        f'height="{_HEIGHT * count / top:.1f}"><title>{count:,}</title></rect>'
        for number, count in enumerate(counts)
        if count
    )
    return (
        f'<figure><svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="histogram of {html.escape(name)}">'
        f'{bars}</svg><div class="axis">{low:.1f} to {high:.1f}</div>'
        f"<figcaption>{html.escape(name)}, median {statistics.median(values):.1f}</figcaption></figure>"
    )


def _table(title: str, problems: dict[str, Problem]) -> str:
    if not problems:
        return ""
    rows = "".join(
        f'<tr><td class="count">{problem.count:,}</td><td dir="auto">{html.escape(cause)}</td><td>'
        + "<br>".join(f'<code dir="auto">{html.escape(example)}</code>' for example in problem.examples)
        + "</td></tr>"
        for cause, problem in sorted(problems.items(), key=lambda item: -item[1].count)
    )
    return f"<h2>{html.escape(title)}</h2><table>{rows}</table>"


def _player(recording: Recording, kinds: tuple[str, ...]) -> str:
    sound = _wav(recording)
    player = f'<audio controls preload="none" src="data:audio/wav;base64,{sound}"></audio>' if sound else ""
    return (
        f'<tr><td>{player}</td><td class="text" dir="auto">{html.escape(recording.text)}</td>'
        f"<td>{html.escape(', '.join(kinds))}</td><td><code>{html.escape(recording.id)}</code></td></tr>"
    )


def _wav(recording: Recording) -> str:
    """The start of a recording as 16-bit mono, in base 64; empty where it was not decoded and so may not be sound."""
    if recording.finding.content is None:
        return ""
    span = recording.audio
    with soundfile.SoundFile(span.path) as stream:
        stream.seek(round((span.offset or 0.0) * stream.samplerate))
        seconds = min(span.duration or _PLAYED_SECONDS, _PLAYED_SECONDS)
        block = stream.read(round(seconds * stream.samplerate), dtype="float32", always_2d=True)
        rate = stream.samplerate
    target = io.BytesIO()
    soundfile.write(target, np.clip(block.mean(axis=1), -1, 1), rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(target.getvalue()).decode()
