"""Prompts of the store, spoken by one model: the same texts, voices, seeds and limits for each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgsc.catalog.codec import FRAMES_PER_SECOND
from higgsc.contract.evaluation import Spoken
from higgsc.contract.jobs import EvaluateJob
from higgsc.data.audio import write_wav
from higgsc.data.codec import Codec
from higgsc.data.store import Store, StoredSample
from higgsc.deploy.evaluate.measures import code_accuracy, heard
from higgsc.deploy.generate import Speaker
from higgsc.train.seeds import Purpose, torch_seed
from higgsc.train.speech.samples import file_stem
from higgsc.train.speech.sampling import Sampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A prompt to be spoken, and what it is compared with."""

    sample: StoredSample
    record: dict[str, Any]
    """Its line of samples.jsonl: texts and origin."""
    stem: str
    """How its files begin; no two prompts share it."""
    seed: int
    max_seconds: float


def tasks(job: EvaluateJob, store: Store) -> list[Task]:
    """The prompts that a job asks for, the first of their kind in the store."""
    chosen = (store.validation if job.prompts == "held-out" else store.train)[: job.samples]
    made: list[Task] = []
    for index in map(int, chosen):
        sample = store.sample(index)
        stem = file_stem(sample.id)
        made.append(
            Task(
                sample=sample,
                record=store.record(index),
                stem=f"{stem}-{index}" if any(stem == other.stem for other in made) else stem,
                seed=torch_seed(job.seed, Purpose.SAMPLING, index),
                # Room to speak slowly; a model that has not learnt to stop is cut off all the same.
                max_seconds=2 * len(sample.target) / FRAMES_PER_SECOND + 2,
            )
        )
    return made


def write_recordings(task: Task, codec: Codec, folder: Path) -> tuple[Path, Path]:
    """The sample's reference and target as the audio tokenizer gives them back, as WAV files."""
    reference, recording = folder / f"{task.stem}.reference.wav", folder / f"{task.stem}.recording.wav"
    write_wav(reference, codec.decode(task.sample.reference))
    write_wav(recording, codec.decode(task.sample.target))
    return reference, recording


def speak_all(
    speaker: Speaker,
    prompts: Sequence[Task],
    *,
    who: str,
    temperature: float,
    folder: Path,
    before_each: Callable[[str], None],
) -> list[Spoken]:
    """Let one model speak all prompts, one after the other, into `<stem>.<who>.wav`."""
    return [_speak(speaker, task, who, temperature, folder, before_each) for task in prompts]


def _speak(
    speaker: Speaker, task: Task, who: str, temperature: float, folder: Path, before: Callable[[str], None]
) -> Spoken:
    sample = task.sample
    before(sample.id)
    started = time.perf_counter()
    speech = speaker.respond(
        sample.prefix,
        sample.reference,
        sample.middle,
        seed=task.seed,
        sampling=Sampling(temperature=temperature),
        max_seconds=task.max_seconds,
        heard=sample.heard,
    )
    took = time.perf_counter() - started
    wav = folder / f"{task.stem}.{who}.wav"
    write_wav(wav, speech.wave)
    if not speech.finished:
        logger.warning("%s: sample %s did not end within %.1f s", who, sample.id, task.max_seconds)
    return Spoken(
        **heard(wav).model_dump(),
        finished=speech.finished,
        duration_ratio=len(speech.codes) / len(sample.target),
        code_accuracy=code_accuracy(speech.codes, sample.target),
        took_seconds=took,
    )
