"""Encoding on the cores of a machine without a GPU: a process each, all adding to one cache."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from higgsc.contract.jobs import SpeechJob, StepContext
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.clips import ClipEncoder
from higgsc.data.encoders import Kind, open_encoder
from higgsc.data.records import AudioSpan

_TRIED = 3
"""Clips that are encoded to see how long one takes."""
_PAYS_SECONDS = 30.0
"""Work for less than this is done before processes have loaded the codec."""
_MOST_READERS = 8


def cores() -> int:
    """Cores that this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def readers_of(job: SpeechJob) -> int:
    """Threads that read and resample: enough to keep a GPU busy, and one where the cores have encoding to do."""
    return 1 if job.device == "cpu" else job.workers or min(_MOST_READERS, cores())


def spread(
    spans: Sequence[AudioSpan],
    encoder: ClipEncoder,
    job: SpeechJob,
    context: StepContext,
    progress: Callable[[int], None],
    kind: Kind = "codec",
) -> None:
    """Encode in as many processes as the job says, or as there are cores and work for them.

    What they leave in the cache, `encoder` finds there. With a GPU, or with little to do, nothing is done here.

    Args:
        spans: All that is to be encoded, known or not.
        encoder: This process's own.
        job: The job.
        context: Of the step.
        progress: Told how many spans were looked at, every now and then.
        kind: What `encoder` encodes with.

    Raises:
        StepError: A process failed; carries its message and code.
    """
    if job.device != "cpu" or (job.workers or cores()) == 1:
        return
    missing = [span for span in spans if encoder.known(span) is None]
    if job.workers is None:
        started = time.monotonic()
        for _ in encoder.clips(missing[:_TRIED]):
            pass
        missing = missing[_TRIED:]
        if (time.monotonic() - started) / _TRIED * len(missing) < _PAYS_SECONDS:
            return
    workers = min(job.workers or cores(), len(missing))
    if workers < 2:
        return
    # Not forked: this process has threads, and libraries that do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    counts = [spawn.Value("q", 0) for _ in range(workers)]
    failures: Any = spawn.SimpleQueue()
    processes = [
        spawn.Process(
            target=_work, args=(job, context, missing[number::workers], counts[number], failures, kind), daemon=True
        )
        for number in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(0.1)
            progress(len(spans) - len(missing) + sum(count.value for count in counts))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    if not failures.empty():
        message, code, help_ = failures.get()
        raise StepError(message, code=ExitCode(code), help=help_)
    for process in processes:
        if process.exitcode != 0:
            raise StepError(
                f"a process that encodes ended with {process.exitcode}",
                code=ExitCode.INTERNAL,
                help="-9 is a lack of memory: fewer processes need less (`data.prepare.workers`); what was encoded "
                "is kept",
            )
    encoder.cache.refresh()


def _work(
    job: SpeechJob,
    context: StepContext,
    spans: Sequence[AudioSpan],
    count: Synchronized[int],
    failures: Any,
    kind: Kind,
) -> None:
    try:
        with open_encoder(kind, job, context) as encoder:
            for _ in encoder.clips(spans):
                count.value += 1
    except StepError as error:
        failures.put((str(error), int(error.code), error.help))
