"""The prepare step: data files to the store of codes.

Every sample is read, cleaned and laid out before the first one is encoded, so that what is wrong with the data
shows in minutes and not after hours of encoding. Only then does each clip go through the codec, unless the cache has
its codes from an encode step, an earlier run or an attempt that was killed. The store is written last, from the cache.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import PrepareJob, StepContext
from higgsc.contract.outcome import StepResult
from higgsc.data.clips import Clip, ClipEncoder
from higgsc.data.collect import Laid, collect
from higgsc.data.encode import check_machine, encode, hear
from higgsc.data.encoders import open_encoder
from higgsc.data.listener import Listener
from higgsc.data.lock import exclusive
from higgsc.data.places import Places, store_path
from higgsc.data.records import AudioSpan, CloningSample
from higgsc.data.rejects import Rejects
from higgsc.data.remote import is_url, upload
from higgsc.data.split import held_out
from higgsc.data.store import STORE_FILE, Store
from higgsc.data.store_writer import StoreWriter
from higgsc.data.whisper import WhisperEncoder
from higgsc.data.workers import readers_of


def run(job: PrepareJob, context: StepContext) -> StepResult:
    """Read the job's data, encode each clip once, write the store.

    Raises:
        StepError: A data file, the base's tokenizer or the codec is missing (66); a data file cannot be read,
            more samples are bad than `limits.max_bad_fraction` allows, or too few are left (65); another process
            writes the same store (74).
    """
    check_machine(job, context)
    store = store_path(job.store, job, context)
    with exclusive(store):
        return _run(job, context)


def _run(job: PrepareJob, context: StepContext) -> StepResult:
    store, places = store_path(job.store, job, context), Places(job, context)
    heartbeat = HeartbeatWriter(context.path(job.run), "prepare", unit="samples", total=None)
    rejects = Rejects(context, run=job.run, max_fraction=job.limits.max_bad_fraction, name=places.name)
    samples, changes = collect(job, places, rejects, heartbeat)
    with ExitStack() as stack:
        encoder = stack.enter_context(open_encoder("codec", job, context, places=places, readers=readers_of(job)))
        spans = len({span for laid in samples for span in (laid.sample.reference_audio, laid.sample.target_audio)})

        def progress(done: int) -> None:  # clips are what takes time, samples are what people count
            heartbeat.beat(done * len(samples) // spans, f"{done:,} of {spans:,} clips")

        fit = encode(samples, encoder, job, context, rejects, progress)
        listener = None
        if job.model.whisper is not None:
            heartbeat.beat(len(samples), "what Whisper hears of the references", force=True)
            listener = stack.enter_context(
                open_encoder("whisper", job, context, places=places, readers=readers_of(job))
            )
            fit = hear(fit, listener, job, context, rejects)
        _write(store, fit, job, places, encoder, rejects, listener)
    heartbeat.beat(len(samples), force=True)
    if is_url(job.store):
        upload(store, job.store, last=STORE_FILE)
    counts = Store.open(store).counts
    used = {span.path for laid in samples for span in (laid.sample.reference_audio, laid.sample.target_audio)}
    read = (*(places.path(source.path) for source in job.sources), *sorted(used))
    return StepResult(
        summary=f"{counts['samples']} samples encoded, {counts['rejected']} rejected",
        inputs=tuple(path for path in read if not places.is_remote(path)),
        outputs=(store,),
        figures=dict(counts)
        | {"encoded clips": encoder.encoded, "encoded seconds": round(encoder.seconds, 3)}
        | ({} if listener is None else {"heard clips": listener.encoded})
        | {f"text/{kind}": count for kind, count in sorted(changes.items())},
    )


def _write(
    store: Path,
    fit: list[tuple[Laid, dict[str, Clip]]],
    job: PrepareJob,
    places: Places,
    encoder: ClipEncoder,
    rejects: Rejects,
    listener: ClipEncoder | None,
) -> None:
    """Write the store of those samples whose audio is usable."""
    made_by: dict[str, Any] = {
        "base": job.model.base,
        "revision": job.model.revision,
        "codec": encoder.codec.fingerprint,
        "seed": job.seed,
        "validation_fraction": job.validation_fraction,
        "validation_by": job.validation_by,
    }
    who: Listener | None = None
    if listener is not None:
        assert isinstance(listener.codec, WhisperEncoder)
        who = listener.codec.listener
    heard = {laid.sample.reference_audio: clips["heard"] for laid, clips in fit if "heard" in clips}
    held = held_out(
        [(laid.sample.id, laid.sample.speaker) for laid, _ in fit],
        by=job.validation_by,
        fraction=job.validation_fraction,
        seed=job.seed,
    )
    with StoreWriter(store, made_by=made_by, listener=who) as writer:
        numbers: dict[AudioSpan, int] = {}
        for laid, clips in fit:
            sample = laid.sample
            for what, span in (("reference", sample.reference_audio), ("target", sample.target_audio)):
                if span not in numbers:
                    clip = clips[what]
                    numbers[span] = writer.add_clip(
                        encoder.cache.codes(clip.entry),
                        audio=bytes.fromhex(clip.part.audio),
                        heard=listener.cache.codes(heard[span].entry) if listener and span in heard else None,
                    )
            writer.add_sample(
                laid.segments,
                reference=numbers[sample.reference_audio],
                target=numbers[sample.target_audio],
                speaker=sample.speaker,
                validation=sample.id in held,
                record=_record(sample, places),
            )
        for record in rejects.records():
            writer.reject(record)


def _record(sample: CloningSample, places: Places) -> dict[str, Any]:
    def audio(span: AudioSpan) -> dict[str, Any]:
        name = places.name(span.path)
        if span.offset is None:  # the whole file
            return {"path": name}
        return {"path": name, "offset": span.offset, "duration": span.duration}

    return {
        "id": sample.id,
        "system": sample.system,
        "scene": sample.scene,
        "reference_text": sample.reference_text,
        "reference_audio": audio(sample.reference_audio),
        "target_text": sample.target_text,
        "target_audio": audio(sample.target_audio),
        "source": places.name(sample.source),
        "line": sample.line,
    }
