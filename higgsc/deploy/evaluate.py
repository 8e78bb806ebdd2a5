"""The evaluate step: what training changed, in figures and to listen to.

Two things are measured. Teacher-forced losses of base and trained model on the store's validation samples, which
say whether the trained model predicts held-out speech better. And some prompts spoken, held-out ones or those of the
training, which says whether it speaks at all, and stops.
"""

from __future__ import annotations

import gc
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from higgsc.catalog.codec import FRAMES_PER_SECOND
from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import EvaluateJob, MeshJob, StepContext
from higgsc.contract.outcome import StepError, StepResult
from higgsc.contract.publish import publish_folder
from higgsc.data.audio import write_wav
from higgsc.data.codec import Codec
from higgsc.data.layout import ChatLayout
from higgsc.data.loading import load_codec
from higgsc.data.places import fetch_store
from higgsc.data.store import STORE_FILE, Store
from higgsc.deploy.base import folder_ref, stored_dtype
from higgsc.deploy.generate import Speaker
from higgsc.deploy.merge.fold import REPORT_FILE as MERGE_FILE
from higgsc.train.checkpoints.checkpoint import MANIFEST, select_checkpoint
from higgsc.train.model.build import load_base
from higgsc.train.objective.loss import LossModule
from higgsc.train.objective.validate import ValidationLosses, validation_losses
from higgsc.train.parallel.mesh import Mesh, open_mesh
from higgsc.train.seeds import Purpose, torch_seed
from higgsc.train.speech.samples import file_stem
from higgsc.train.speech.sampling import Sampling
from higgsc.train.speech.speak import Codes

REPORT_FILE = "evaluation.json"
REPORT_SCHEMA = "higgsc.evaluation/v1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenSample:
    """One prompt, spoken by the trained model."""

    id: str
    speaker: str
    reference_text: str
    target_text: str
    wav: str
    """File beside the report."""
    seed: int
    finished: bool
    """Whether the model ended by itself within `max_seconds`."""
    seconds: float
    target_seconds: float
    """Length of the recording of the same text."""
    max_seconds: float
    code_accuracy: float
    """See `code_accuracy`."""


def code_accuracy(spoken: Codes, target: Codes) -> float:
    """Share of codes that are the recording's, over the longer of the two; 1 only if they are identical.

    Low is no fault where codes are sampled: the same sentence can be said in many ways. It is telling on what
    the model has memorised.
    """
    frames = min(len(spoken), len(target))
    equal = int((spoken[:frames] == target[:frames]).sum())
    return equal / float(max(len(spoken), len(target)) * target.shape[1])


def run(job: EvaluateJob, context: StepContext) -> StepResult:
    """Measure base and trained model on the validation samples, and speak some of their prompts.

    The trained model is the merged one, or a checkpoint of a training of the whole model.

    Raises:
        StepError: The store has no validation samples (65), or was made with another audio tokenizer (65); or the
            store or the trained model is missing (66).
    """
    store_path, (merged, record) = fetch_store(job.store, job, context), _trained(job, context)
    store = Store.open(store_path)
    if not len(store.validation):
        raise StepError(
            "the store has no validation samples to evaluate on",
            path=store_path,
            help="set `data.validation.fraction` above 0 and run the prepare step again, or leave `evaluate` out",
        )
    dtype = stored_dtype(merged)
    chosen = (store.validation if job.prompts == "held-out" else store.train)[: job.samples]
    # Two passes over the validation set, then the samples; a loss pass counts as one, however long it takes.
    heartbeat = HeartbeatWriter(context.path(job.run), "evaluate", unit="parts", total=2 + len(chosen))
    alone = MeshJob(replicate=1, shard=1)
    with open_mesh(alone, job.device, rank=context.rank, world_size=context.world_size) as mesh:
        codec = load_codec(job.model, root=context.root, device=mesh.device)
        _check_codec(store, codec, store_path)
        heartbeat.beat(0, "loss of the base", force=True)
        base = load_base(job.model, root=context.root, dtype=dtype, device=mesh.device)
        before = _losses(base, store, mesh)
        del base
        gc.collect()
        heartbeat.beat(1, "loss of the trained model", force=True)
        model = load_base(folder_ref(merged), root=context.root, dtype=dtype, device=mesh.device)
        after = _losses(model, store, mesh)
        speaker = Speaker(model, ChatLayout.load(merged), codec)
        with publish_folder(context.path(job.evaluation), marker=REPORT_FILE) as folder:
            spoken = []
            for number, index in enumerate(chosen):
                heartbeat.beat(2 + number, store.record(int(index))["id"], force=True)
                spoken.append(_speak(speaker, store, int(index), job, folder))
            _write_report(folder / REPORT_FILE, job, before, after, spoken)
    heartbeat.beat(2 + len(chosen), force=True)

    finished = sum(sample.finished for sample in spoken)
    figures: dict[str, float | int | str] = {
        "base/audio_loss": before.audio,
        "base/text_loss": before.text,
        "merged/audio_loss": after.audio,
        "merged/text_loss": after.text,
        "samples": len(spoken),
        "samples_finished": finished,
    }
    if spoken:
        figures["code_accuracy"] = float(np.mean([sample.code_accuracy for sample in spoken]))
    return StepResult(
        summary=_summary(job, before, after, spoken),
        inputs=(store_path / STORE_FILE, record),
        outputs=(context.path(job.evaluation), *(context.path(job.evaluation) / sample.wav for sample in spoken)),
        figures=figures,
    )


def _trained(job: EvaluateJob, context: StepContext) -> tuple[Path, Path]:
    """Folder of the trained model, and the file in it that says what it is."""
    if job.trained is None:
        assert job.merged is not None, "a job names a merged model or a checkpoint"
        return context.path(job.merged), context.path(job.merged) / MERGE_FILE
    chosen = job.trained
    checkpoint = select_checkpoint(context.path(chosen.checkpoints), chosen.select, by=chosen.best).path
    return checkpoint, checkpoint / MANIFEST


def _summary(job: EvaluateJob, before: ValidationLosses, after: ValidationLosses, spoken: list[SpokenSample]) -> str:
    what = "merged" if job.trained is None else "trained"
    losses = f"validation audio loss {before.audio:.2f} with the base, {after.audio:.2f} {what}"
    if not spoken:
        return losses
    ended = sum(sample.finished for sample in spoken)
    text = f"{losses}; {ended} of {len(spoken)} {job.prompts} prompts spoken to the end"
    if job.prompts == "training":
        text += f", {np.mean([sample.code_accuracy for sample in spoken]):.0%} of the codes as recorded"
    return text


def _losses(model: Any, store: Store, mesh: Mesh) -> ValidationLosses:
    return validation_losses(LossModule(model), store, np.split(store.validation, len(store.validation)), mesh=mesh)


def _speak(speaker: Speaker, store: Store, index: int, job: EvaluateJob, folder: Path) -> SpokenSample:
    sample, record = store.sample(index), store.record(index)
    target_seconds = len(sample.target) / FRAMES_PER_SECOND
    # Room to speak slowly; a model that has not learnt to stop is cut off all the same.
    max_seconds = 2 * target_seconds + 2
    seed = torch_seed(job.seed, Purpose.SAMPLING, index)
    speech = speaker.respond(
        sample.prefix,
        sample.reference,
        sample.middle,
        seed=seed,
        sampling=Sampling(temperature=job.temperature),
        max_seconds=max_seconds,
    )
    wav = folder / f"{file_stem(sample.id)}.wav"
    if wav.exists():
        wav = wav.with_stem(f"{wav.stem}-{index}")
    write_wav(wav, speech.wave)
    if not speech.finished:
        logger.warning("sample %s did not end within %.1f s", sample.id, max_seconds)
    return SpokenSample(
        id=sample.id,
        speaker=sample.speaker,
        reference_text=record["reference_text"],
        target_text=record["target_text"],
        wav=wav.name,
        seed=seed,
        finished=speech.finished,
        seconds=speech.seconds,
        target_seconds=target_seconds,
        max_seconds=max_seconds,
        code_accuracy=code_accuracy(speech.codes, sample.target),
    )


def _check_codec(store: Store, codec: Codec, path: Path) -> None:
    made_with = store.made_by.get("codec")
    if made_with != codec.fingerprint:
        raise StepError(
            f"the store was made with the audio tokenizer {str(made_with)[:12]}, not with {codec.fingerprint[:12]}",
            path=path / STORE_FILE,
            help="run the prepare step again",
        )


def _write_report(
    path: Path, job: EvaluateJob, before: ValidationLosses, after: ValidationLosses, spoken: list[SpokenSample]
) -> None:
    report = {
        "schema": REPORT_SCHEMA,
        "prompts": job.prompts,
        "losses": {"base": asdict(before), "merged": asdict(after)},
        "temperature": job.temperature,
        "samples": [asdict(sample) for sample in spoken],
    }
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
