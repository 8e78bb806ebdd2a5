"""The samples of a job's data files: read, cleaned and laid out, before the first one is encoded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import SpeechJob, TextJob
from higgsc.data.layout import ChatLayout, Segments
from higgsc.data.places import Places
from higgsc.data.records import CloningSample, Rejected
from higgsc.data.rejects import Rejects
from higgsc.data.samples import SourceFile, read_samples
from higgsc.data.text import clean_text
from higgsc.train.model.builtin import resolve_base

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Laid:
    """A sample with its texts cleaned, and laid out."""

    sample: CloningSample
    segments: Segments


def collect(
    job: SpeechJob, places: Places, rejects: Rejects, heartbeat: HeartbeatWriter
) -> tuple[list[Laid], Counter[str]]:
    """Read a job's data.

    Returns:
        The samples that are usable as far as one can tell without opening their audio, in the order of the data, and
        what was changed in their texts.

    Raises:
        StepError: A data file or the base's tokenizer is missing (66); a data file cannot be read, or more samples
            are bad than `limits.max_bad_fraction` allows (65).
    """
    layout = ChatLayout.load(resolve_base(job.model.base, root=places.root), revision=job.model.revision)
    samples: list[Laid] = []
    changes: Counter[str] = Counter()
    for read in _read(job, places, layout, changes):
        heartbeat.beat(len(samples), "reading")
        if isinstance(read, Rejected):
            rejects.add(read)
        else:
            samples.append(read)
    rejects.total = len(samples) + len(rejects)
    rejects.check()
    for kind, count in sorted(changes.items()):
        _log.info("texts normalised: %s, %d", kind, count)
    heartbeat.total = len(samples)
    return samples, changes


def _read(job: SpeechJob, places: Places, layout: ChatLayout, changes: Counter[str]) -> Iterator[Laid | Rejected]:
    """Every sample of every data file, in order: laid out, or rejected."""
    seen: dict[str, CloningSample] = {}
    for source, path in [(source, places.data_file(source.path, source.format)) for source in job.sources]:
        homes = places.homes(path)
        file = SourceFile(
            path=path, format=source.format, pairing=source.pairing, speaker=source.speaker, seed=job.seed
        )
        for sample in read_samples(file, root=places.root, homes=homes):
            if isinstance(sample, Rejected):
                yield sample
                continue
            try:
                if earlier := seen.get(sample.id):
                    raise ValueError(f"the id was used before, at {places.name(earlier.source)}:{earlier.line}")
                seen[sample.id] = sample
                laid = _lay(sample, layout, job.text, changes)
                for what, span in (("reference", sample.reference_audio), ("target", sample.target_audio)):
                    try:
                        places.check(span.path, homes)
                    except ValueError as error:
                        raise ValueError(f"{what} audio {places.name(span.path)}: {error}") from error
                yield laid
            except ValueError as error:
                yield Rejected(id=sample.id, source=sample.source, line=sample.line, reason=str(error))


def _lay(sample: CloningSample, layout: ChatLayout, options: TextJob, changes: Counter[str]) -> Laid:
    sample = replace(
        sample,
        reference_text=_clean(sample.reference_text, "reference text", options, changes),
        target_text=_clean(sample.target_text, "target text", options, changes),
    )
    segments = layout.segments(
        system=sample.system,
        scene=sample.scene,
        reference_text=sample.reference_text,
        target_text=sample.target_text,
    )
    return Laid(sample, segments)


def _clean(text: str, what: str, options: TextJob, changes: Counter[str]) -> str:
    try:
        return clean_text(text, options, changes)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
