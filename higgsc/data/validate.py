"""`higgsc data validate`: everything that would make data fail or teach the wrong thing, before anything is encoded."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from higgsc.contract.jobs import DataLimits, TextJob
from higgsc.contract.outcome import StepError
from higgsc.data.convert import cause_of
from higgsc.data.formats.paths import homes_of
from higgsc.data.inspect import Finding, declared_error, inspect
from higgsc.data.records import AudioSpan, Record
from higgsc.data.samples import SourceFile, span_of
from higgsc.data.split import held_out
from higgsc.data.structure import Problem, Structure, check_structure
from higgsc.data.text import clean_text

_CHUNK = 32
_FEWEST_FOR_OUTLIERS = 20
_OUTLIER_DEVIATIONS = 5.0
_PLAUSIBLE_RATE = (1.0, 40.0)
"""Characters a second outside of which nobody speaks in any script."""

Progress = Callable[[int, int], None]
"""Called with recordings done and their total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to validate, and against what."""

    sources: tuple[SourceFile, ...]
    root: Path
    """The project root, inside which audio may lie."""
    roots: tuple[Path, ...] = ()
    """More folders inside which it may lie."""
    limits: DataLimits
    text: TextJob = field(default_factory=TextJob)
    validation_fraction: float = 0.0
    validation_by: Literal["sample", "speaker"] = "sample"
    seed: int = 0
    depth: str = "full"
    """`rows` looks at the rows alone, `headers` at the headers of audio files too, `full` decodes them."""
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The target of a good sample, for figures and for the list of the worst."""

    id: str
    place: str
    audio: AudioSpan
    text: str
    speaker: str
    finding: Finding


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found."""

    depth: str
    structure: Structure
    errors: dict[str, Problem] = field(default_factory=dict)
    """By cause: samples that preparation would leave out."""
    warnings: dict[str, Problem] = field(default_factory=dict)
    """By kind: samples that would be used, and are odd."""
    odd: dict[str, list[str]] = field(default_factory=dict)
    """Kinds of warnings by the place of the sample they are about."""
    changes: Counter[str] = field(default_factory=Counter)
    """What the text clean-up would change."""
    recordings: list[Recording] = field(default_factory=list)
    files: int = 0
    """Recordings, or parts of recordings, that were looked at."""
    bad: int = 0
    """Samples that preparation would leave out, each once."""
    max_bad_fraction: float

    @property
    def samples(self) -> int:
        return self.structure.samples

    @property
    def passed(self) -> bool:
        """Whether preparation would accept the data."""
        return self.samples > self.bad and self.bad <= self.max_bad_fraction * self.samples

    @property
    def seconds(self) -> float:
        """Of the targets."""
        return sum(recording.finding.seconds or 0.0 for recording in self.recordings)


@dataclass(frozen=True, slots=True)
class _Row:
    place: str
    record: Record
    reference: AudioSpan
    target: AudioSpan


def validate(request: Request, progress: Progress | None = None) -> Report:
    """Check data files and their audio.

    Raises:
        StepError: A data file is missing (66), cannot be read, or is of no known format (65).
    """
    rows: list[_Row] = []
    homes = {source: homes_of(source.path, request.root, request.roots) for source in request.sources}

    def keep(source: SourceFile, line: int, record: Record) -> None:
        reference, target = record.references[0].audio, record.target.audio
        assert reference is not None
        assert target is not None
        spans = [span_of(audio, source.path, homes[source]) for audio in (reference, target)]
        rows.append(_Row(f"{source.path}:{line}", record, spans[0], spans[1]))

    structure = check_structure(
        request.sources, root=request.root, roots=request.roots, keep=None if request.depth == "rows" else keep
    )
    report = Report(
        depth=request.depth,
        structure=structure,
        errors=dict(structure.problems),
        bad=structure.bad,
        max_bad_fraction=request.limits.max_bad_fraction,
    )
    if request.depth != "rows":
        spans = list(dict.fromkeys(span for row in rows for span in (row.reference, row.target)))
        allowed = tuple(dict.fromkeys(home for some in homes.values() for home in some))
        findings = dict(zip(spans, _look(spans, allowed, request, progress), strict=True))
        report.files = len(spans)
        _judge(rows, findings, request, report)
        _warn_of_rates(report)
        _warn_of_duplicates(report)
        _warn_of_leaks(report, request)
    return report


def _look(
    spans: list[AudioSpan], homes: tuple[Path, ...], request: Request, progress: Progress | None
) -> Iterator[Finding]:
    """The findings of all recordings, in order."""
    fast, limits = request.depth == "headers", request.limits
    chunks = [(chunk, homes, limits, fast) for chunk in _chunks(spans)]
    done = 0
    if request.workers == 1 or len(chunks) < 2:
        made: Iterable[list[Finding]] = map(_look_at, chunks)
        for findings in made:
            done += len(findings)
            if progress is not None:
                progress(done, len(spans))
            yield from findings
        return
    # Not forked: the parent may hold threads and locks of libraries.
    with ProcessPoolExecutor(request.workers, mp_context=get_context("spawn")) as pool:
        for findings in pool.map(_look_at, chunks):
            done += len(findings)
            if progress is not None:
                progress(done, len(spans))
            yield from findings


def _chunks(spans: list[AudioSpan]) -> Iterator[list[AudioSpan]]:
    waiting = iter(spans)
    while chunk := list(islice(waiting, _CHUNK)):
        yield chunk


def _look_at(task: tuple[list[AudioSpan], tuple[Path, ...], DataLimits, bool]) -> list[Finding]:
    spans, homes, limits, fast = task
    return [inspect(span, homes, limits, fast=fast) for span in spans]


def _judge(rows: list[_Row], findings: dict[AudioSpan, Finding], request: Request, report: Report) -> None:
    for row in rows:
        try:
            for what, text in (("reference", row.record.references[0].text), ("target", row.record.target.text)):
                try:
                    clean_text(text, request.text, report.changes)
                except ValueError as error:
                    raise ValueError(f"{what} text: {error}") from error
            for what, span in (("reference", row.reference), ("target", row.target)):
                if bad := next(iter(findings[span].errors), None) or declared_error(span, findings[span]):
                    raise ValueError(f"{what} audio: {bad} ({span.path.name})")
        except ValueError as unusable:
            report.bad += 1
            cause = _without_names(str(unusable))
            report.errors.setdefault(cause, Problem()).add(f"{row.place}: {row.record.id}: {unusable}")
            continue
        finding = findings[row.target]
        asked = (row.record.extra or {}).get("request")
        if isinstance(asked, str) and row.record.target.text not in asked:
            _warn(report, "request unlike the transcript", row.place, row.record.id, f"asks for {asked!r:.80}")
        for kind in finding.warnings:
            _warn(report, kind, row.place, row.record.id, row.target.path.name)
        report.recordings.append(
            Recording(
                id=row.record.id,
                place=row.place,
                audio=row.target,
                text=row.record.target.text,
                speaker=row.record.speaker,
                finding=finding,
            )
        )
    lone = [speaker for speaker, count in report.structure.speakers.items() if speaker and count == 1]
    for speaker in lone:
        report.warnings.setdefault("speaker with a single sample", Problem()).add(speaker)


def characters_per_second(recording: Recording) -> float:
    """How fast a text is spoken, as far as its recording tells."""
    return len(recording.text) / max(recording.finding.seconds or 0.0, 1e-3)


def _warn_of_rates(report: Report) -> None:
    """Texts that are too long or too short for their recordings: transcripts of something else, or cut."""
    rates = [characters_per_second(recording) for recording in report.recordings]
    low, high = _PLAUSIBLE_RATE
    if len(rates) >= _FEWEST_FOR_OUTLIERS:
        middle = statistics.median(rates)
        spread = 1.4826 * statistics.median(abs(rate - middle) for rate in rates)
        low, high = max(low, middle - _OUTLIER_DEVIATIONS * spread), min(high, middle + _OUTLIER_DEVIATIONS * spread)
    for recording, rate in zip(report.recordings, rates, strict=True):
        if not low <= rate <= high:
            _warn(report, "characters per second", recording.place, recording.id, f"{rate:.1f}")


def _warn_of_duplicates(report: Report) -> None:
    by_content: dict[str, list[Recording]] = defaultdict(list)
    for recording in report.recordings:
        if recording.finding.content is not None:
            by_content[recording.finding.content].append(recording)
    for same in by_content.values():
        for recording in same[1:]:
            _warn(report, "the same audio twice", recording.place, recording.id, f"as {same[0].id} at {same[0].place}")


def _warn_of_leaks(report: Report, request: Request) -> None:
    """Held-out samples that are learned all the same: the same sound or file is a target in training."""
    samples = [(recording.id, recording.speaker) for recording in report.recordings]
    if request.validation_fraction == 0 or len(samples) < 2:
        return
    try:
        held = held_out(samples, by=request.validation_by, fraction=request.validation_fraction, seed=request.seed)
    except StepError as error:
        first = report.recordings[0]
        _warn(report, "nothing can be held out", first.place, first.id, error.message)
        return
    learned = {_identity(one): one for one in report.recordings if one.id not in held}
    for recording in report.recordings:
        if recording.id in held and (other := learned.get(_identity(recording))):
            _warn(report, "held out and trained on", recording.place, recording.id, f"as {other.id} at {other.place}")


def _identity(recording: Recording) -> str:
    return recording.finding.content or f"{recording.audio.path} {recording.audio.offset}"


def _warn(report: Report, kind: str, place: str, name: str, detail: str) -> None:
    report.warnings.setdefault(kind, Problem()).add(f"{place}: {name}: {detail}")
    report.odd.setdefault(place, []).append(kind)


def _without_names(reason: str) -> str:
    return cause_of(reason.rsplit(" (", 1)[0])
