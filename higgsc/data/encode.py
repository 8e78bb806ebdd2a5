"""The encode step: the codec's work of a prepare step, divided into shards that know nothing of each other.

Each shard encodes the recordings that are its own into the cache of codes. What the shards leave needs no merging:
the prepare step finds every recording in the cache, and encodes itself what is not there. Its store is therefore the
same, byte for byte, whatever the number of shards and of processes, and whichever of them were killed on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import EncodeJob, SpeechJob, StepContext
from higgsc.contract.outcome import ExitCode, StepError, StepResult
from higgsc.data.clips import Clip, ClipEncoder, Verdict, spans_of, usable
from higgsc.data.collect import Laid, collect
from higgsc.data.encoders import open_encoder
from higgsc.data.places import Places
from higgsc.data.records import AudioSpan, Rejected
from higgsc.data.rejects import Rejects
from higgsc.data.workers import readers_of, spread


def run(job: EncodeJob, context: StepContext, shard: int | None = None) -> StepResult:
    """Encode a shard, or all of them.

    Args:
        job: The job.
        context: Where it runs.
        shard: Number of the shard, from 0; None is all, one after the other.

    Raises:
        StepError: As the prepare step's.
    """
    check_machine(job, context)
    if shard is not None and not 0 <= shard < job.shards:
        raise StepError(f"there is no shard {shard} of {job.shards}", code=ExitCode.USAGE, help="the first one is 0")
    places = Places(job, context)
    # One heartbeat for the whole step: the first shard has as far to go as the others.
    heartbeat = HeartbeatWriter(context.path(job.run), "encode", unit="clips", total=None, enabled=not shard)
    rejects = Rejects(context, run=job.run, max_fraction=job.limits.max_bad_fraction, name=places.name)
    samples, _ = collect(job, places, rejects, heartbeat)
    with open_encoder("codec", job, context, places=places, readers=readers_of(job)) as encoder:
        mine = {
            span
            for laid in samples
            for _, span in spans_of(laid.sample)
            if shard is None or shard_of(span, places, job.shards) == shard
        }
        heartbeat.total = len(mine)
        fit = encode(samples, encoder, job, context, rejects, heartbeat.beat, among=mine)
    if job.model.whisper is not None:
        with open_encoder("whisper", job, context, places=places, readers=readers_of(job)) as listener:
            hear(fit, listener, job, context, rejects)
    heartbeat.beat(len(mine), force=True)
    return StepResult(
        summary=f"{encoder.encoded:,} clips encoded, {len(mine) - encoder.encoded:,} were before",
        inputs=(
            *(places.path(source.path) for source in job.sources if not places.is_remote(places.path(source.path))),
            *sorted({span.path for span in mine if not places.is_remote(span.path)}),
        ),
        outputs=(context.path(job.cache),),
        figures={"clips": len(mine), "encoded": encoder.encoded, "encoded seconds": round(encoder.seconds, 3)},
    )


def encode(
    samples: Sequence[Laid],
    encoder: ClipEncoder,
    job: SpeechJob,
    context: StepContext,
    rejects: Rejects,
    progress: Callable[[int], None],
    among: set[AudioSpan] | None = None,
) -> list[tuple[Laid, dict[str, Clip]]]:
    """Encode the audio of samples, and leave those out whose audio is not usable.

    Args:
        samples: The samples.
        encoder: The encoder.
        job: The job.
        context: Of the step.
        rejects: Where samples go that are left out.
        progress: Told how many spans are done.
        among: The spans to look at; None is all.

    Returns:
        The samples that are usable, each with its clips.

    Raises:
        StepError: More samples are bad than `limits.max_bad_fraction` allows; it comes as soon as that is certain.
    """
    places = Places(job, context)
    spans = list(dict.fromkeys(span for laid in samples for _, span in spans_of(laid.sample)))
    if among is not None:
        spans = [span for span in spans if span in among]
    spread(spans, encoder, job, context, progress)
    verdicts: dict[AudioSpan, Verdict] = {}
    made = encoder.clips(spans)
    fit: list[tuple[Laid, dict[str, Clip]]] = []
    for laid in samples:
        clips: dict[str, Clip] = {}
        try:
            for what, span in spans_of(laid.sample):
                if among is not None and span not in among:
                    continue
                while span not in verdicts:
                    done, verdict = next(made)
                    verdicts[done] = verdict
                    progress(len(verdicts))
                clips[what] = usable(what, span, verdicts[span], places)
        except ValueError as error:
            sample = laid.sample
            rejects.add(Rejected(id=sample.id, source=sample.source, line=sample.line, reason=str(error)))
            continue
        fit.append((laid, clips))
    return fit


def hear(
    fit: Sequence[tuple[Laid, dict[str, Clip]]],
    listener: ClipEncoder,
    job: SpeechJob,
    context: StepContext,
    rejects: Rejects,
) -> list[tuple[Laid, dict[str, Clip]]]:
    """Have a Whisper listen to the references of usable samples; what it hears of one is its clip `heard`.

    Args:
        fit: From `encode`; samples whose reference was not looked at are passed over.
        listener: The Whisper.
        job: The job.
        context: Of the step.
        rejects: Where samples go whose reference cannot be read any more.

    Returns:
        The samples that are left.

    Raises:
        StepError: See `encode`.
    """
    places = Places(job, context)
    spans = list(dict.fromkeys(laid.sample.reference_audio for laid, clips in fit if "reference" in clips))
    spread(spans, listener, job, context, lambda done: None, kind="whisper")
    verdicts = dict(listener.clips(spans))
    left: list[tuple[Laid, dict[str, Clip]]] = []
    for laid, clips in fit:
        span = laid.sample.reference_audio
        if span not in verdicts:
            continue
        try:
            heard = usable("reference", span, verdicts[span], places)
            if heard.part != clips["reference"].part:
                raise ValueError(f"reference audio {places.name(span.path)}: the file changed while it was encoded")
        except ValueError as error:
            sample = laid.sample
            rejects.add(Rejected(id=sample.id, source=sample.source, line=sample.line, reason=str(error)))
            continue
        left.append((laid, clips | {"heard": heard}))
    return left


def shard_of(span: AudioSpan, places: Places, shards: int) -> int:
    """The shard whose work a recording is: a function of its name and part alone."""
    name = f"{places.name(span.path)}\0{span.offset}\0{span.duration}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % shards


def check_machine(job: SpeechJob, context: StepContext) -> None:
    """Refuse what cannot work before any data are read.

    Raises:
        StepError: There are several processes (2), or there is no GPU where the job asks for one (66).
    """
    if context.world_size != 1:
        raise StepError(f"{job.step} runs as one process, not as {context.world_size}", code=ExitCode.USAGE)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise StepError(
            "the job asks for a GPU, and torch finds none here",
            code=ExitCode.MISSING_INPUT,
            help="run it on a machine with a GPU, or build the spec for `hardware: 1xCPU`",
        )
