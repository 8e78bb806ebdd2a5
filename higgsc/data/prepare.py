"""The prepare step: data files to the store of codes.

Every sample is read, cleaned and laid out before the first one is encoded, so that what is wrong with the data
shows in minutes and not after hours of encoding. Only then does each clip go through the codec, once.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import PrepareJob, StepContext, TextJob
from higgsc.contract.outcome import ExitCode, StepError, StepResult
from higgsc.data.clips import ClipEncoder
from higgsc.data.formats.paths import homes_of
from higgsc.data.layout import ChatLayout, Segments
from higgsc.data.loading import load_codec
from higgsc.data.records import AudioSpan, CloningSample, Rejected
from higgsc.data.rejects import Rejects
from higgsc.data.samples import SourceFile, check_audio, read_samples
from higgsc.data.split import validation_ids
from higgsc.data.store import Store, StoreWriter
from higgsc.data.text import clean_text
from higgsc.train.builtin import resolve_base

_log = logging.getLogger(__name__)


def run(job: PrepareJob, context: StepContext) -> StepResult:
    """Read the job's data, encode each clip once, write the store.

    Raises:
        StepError: A data file, the base's tokenizer or the codec is missing (66); a data file cannot be read,
            more samples are bad than `limits.max_bad_fraction` allows, or too few are left (65).
    """
    _check_machine(job, context)
    heartbeat = HeartbeatWriter(context.path(job.run), "prepare", unit="samples", total=None)
    rejects = Rejects(context, run=job.run, max_fraction=job.limits.max_bad_fraction)
    base = resolve_base(job.model.base, root=context.root)
    layout = ChatLayout.load(base, revision=job.model.revision)
    samples: list[_Laid] = []
    changes: Counter[str] = Counter()
    for read in _read(job, context, layout, changes):
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
    _encode(samples, job, context, rejects, heartbeat)
    store = context.path(job.store)
    counts = Store.open(store).counts
    used = {span.path for laid in samples for span in (laid.sample.reference_audio, laid.sample.target_audio)}
    return StepResult(
        summary=f"{counts['samples']} samples encoded, {counts['rejected']} rejected",
        inputs=(*(context.path(source.path) for source in job.sources), *sorted(used)),
        outputs=(store,),
        figures=dict(counts) | {f"text/{kind}": count for kind, count in sorted(changes.items())},
    )


@dataclass(frozen=True, slots=True)
class _Laid:
    """A sample with its texts cleaned, and laid out."""

    sample: CloningSample
    segments: Segments


def _check_machine(job: PrepareJob, context: StepContext) -> None:
    if context.world_size != 1:
        raise StepError(f"prepare runs as one process, not as {context.world_size}", code=ExitCode.USAGE)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise StepError(
            "the job asks for a GPU, and torch finds none here",
            code=ExitCode.MISSING_INPUT,
            help="run it on a machine with a GPU, or build the spec for `hardware: 1xCPU`",
        )
    for source in job.sources:
        if not context.path(source.path).is_file():
            raise StepError("the data file does not exist", code=ExitCode.MISSING_INPUT, path=context.path(source.path))


def _read(
    job: PrepareJob, context: StepContext, layout: ChatLayout, changes: Counter[str]
) -> Iterator[_Laid | Rejected]:
    """Every sample of every data file, in order: laid out, or rejected."""
    seen: dict[str, CloningSample] = {}
    roots = tuple(context.path(root) for root in job.roots)
    for source in job.sources:
        path = context.path(source.path)
        file = SourceFile(
            path=path, format=source.format, pairing=source.pairing, speaker=source.speaker, seed=job.seed
        )
        homes = homes_of(path, context.root, roots)
        for sample in read_samples(file, root=context.root, roots=roots):
            if isinstance(sample, Rejected):
                yield sample
                continue
            try:
                if earlier := seen.get(sample.id):
                    place = f"{os.path.relpath(earlier.source, context.root)}:{earlier.line}"
                    raise ValueError(f"the id was used before, at {place}")
                seen[sample.id] = sample
                laid = _lay(sample, layout, job.text, changes)
                check_audio(sample, homes)
                yield laid
            except ValueError as error:
                yield Rejected(id=sample.id, source=sample.source, line=sample.line, reason=str(error))


def _lay(sample: CloningSample, layout: ChatLayout, options: TextJob, changes: Counter[str]) -> _Laid:
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
    return _Laid(sample, segments)


def _clean(text: str, what: str, options: TextJob, changes: Counter[str]) -> str:
    try:
        return clean_text(text, options, changes)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _encode(
    samples: Sequence[_Laid],
    job: PrepareJob,
    context: StepContext,
    rejects: Rejects,
    heartbeat: HeartbeatWriter,
) -> None:
    """Write the store of those samples whose audio is usable."""
    codec = load_codec(job.model, root=context.root, device=job.device)
    made_by = {
        "base": job.model.base,
        "revision": job.model.revision,
        "codec": codec.fingerprint,
        "seed": job.seed,
        "validation_fraction": job.validation_fraction,
    }
    usable: list[tuple[_Laid, int, int]] = []
    with StoreWriter(context.path(job.store), made_by=made_by) as writer:
        clips = ClipEncoder(codec, writer, limits=job.limits, root=context.root)
        for number, laid in enumerate(samples):
            sample = laid.sample
            heartbeat.beat(number, sample.id)
            try:
                usable.append((laid, *clips.add(sample)))
            except ValueError as error:
                rejects.add(Rejected(id=sample.id, source=sample.source, line=sample.line, reason=str(error)))
        ids = [laid.sample.id for laid, *_ in usable]
        held_out = validation_ids(ids, fraction=job.validation_fraction, seed=job.seed)
        for laid, reference, target in usable:
            writer.add_sample(
                laid.segments,
                reference=reference,
                target=target,
                speaker=laid.sample.speaker,
                validation=laid.sample.id in held_out,
                record=_record(laid.sample, context.root),
            )
        for record in rejects.records():
            writer.reject(record)
    heartbeat.beat(len(samples), force=True)


def _record(sample: CloningSample, root: Path) -> dict[str, Any]:
    def audio(span: AudioSpan) -> dict[str, Any]:
        path = os.path.relpath(span.path, root)
        if span.offset is None:  # the whole file
            return {"path": path}
        return {"path": path, "offset": span.offset, "duration": span.duration}

    return {
        "id": sample.id,
        "system": sample.system,
        "scene": sample.scene,
        "reference_text": sample.reference_text,
        "reference_audio": audio(sample.reference_audio),
        "target_text": sample.target_text,
        "target_audio": audio(sample.target_audio),
        "source": os.path.relpath(sample.source, root),
        "line": sample.line,
    }
