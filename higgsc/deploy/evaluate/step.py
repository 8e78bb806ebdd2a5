"""The evaluate step: the base, the adapter on it and the merged model side by side, in `evaluation.json` and on a page.

Losses with text and codes given say whether held-out speech is predicted better. Prompts spoken by all, with the same
seeds, say whether each speaks at all, and stops; where the spec names them, a recogniser and a speaker verification
model listen to what was said.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import higgsc
from higgsc.contract.evaluation import EVALUATION_FILE, PAGE_FILE, Evaluation, Kind, Losses, Measured, Prompt, Spoken
from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import EvaluateJob, MeshJob, StepContext
from higgsc.contract.outcome import StepError, StepResult
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file
from higgsc.data.codec import Codec
from higgsc.data.layout import ChatLayout
from higgsc.data.loading import load_codec
from higgsc.data.page.document import write_whole
from higgsc.data.places import fetch_store
from higgsc.data.store import STORE_FILE, Store
from higgsc.deploy.adapted import put_on
from higgsc.deploy.base import folder_ref
from higgsc.deploy.evaluate.listening import check_judges, understood, voiced
from higgsc.deploy.evaluate.losses import losses
from higgsc.deploy.evaluate.measures import heard, totals
from higgsc.deploy.evaluate.report import page
from higgsc.deploy.evaluate.speaking import Task, speak_all, tasks, write_recordings
from higgsc.deploy.evaluate.trained import Trained, of_job
from higgsc.deploy.generate import Speaker
from higgsc.train.model.build import load_base
from higgsc.train.model.folder import base_folder
from higgsc.train.model.projector import check_heard
from higgsc.train.parallel.mesh import Mesh, open_mesh

Beat = Callable[[int, int, str], None]
"""Told about each part of the work: how many are done, of how many, and what comes now."""


def run(job: EvaluateJob, context: StepContext) -> StepResult:
    """The step of a plan; see `evaluate`."""
    trained = of_job(job, context)
    heartbeat = HeartbeatWriter(context.path(job.run), "evaluate", unit="parts", total=None)

    def beat(done: int, total: int, message: str) -> None:
        heartbeat.total = total
        heartbeat.beat(done, message, force=True)

    found = evaluate(job, context, trained, beat)
    folder = context.path(job.evaluation)
    return StepResult(
        summary=summary(found),
        inputs=(fetch_store(job.store, job, context) / STORE_FILE, *(one.proof for one in trained)),
        outputs=(folder / EVALUATION_FILE, folder / PAGE_FILE),
        figures=_figures(found),
    )


def evaluate(job: EvaluateJob, context: StepContext, trained: Sequence[Trained], beat: Beat) -> Evaluation:
    """Measure the base and what was trained, and write the folder `job.evaluation`: report, page and WAV files.

    Args:
        job: What is measured; `merged` and `trained` of it are not looked at.
        context: Where.
        trained: The models that are compared with `job.model`, at least one; an adapter comes first. All compute in the
            number format that the last is stored in.
        beat: Told how far it has come.

    Raises:
        StepError: The store has no validation samples (65), or was made with another audio tokenizer (65); or the
            store, a model or a package is missing (66).
    """
    store_path = fetch_store(job.store, job, context)
    store = Store.open(store_path)
    if not len(store.validation):
        raise StepError(
            "the store has no validation samples to evaluate on",
            path=store_path,
            help="set `data.validation.fraction` above 0 and run the prepare step again, or leave `evaluate` out",
        )
    check_judges(job, context.root)
    base = base_folder(job.model.base, job.model.revision, root=context.root)
    for one in trained:
        one.check(base)
    dtype = trained[-1].dtype(base)
    prompts = tasks(job, store)
    models, judges = 1 + len(trained), (job.recogniser is not None) + (job.similarity is not None)
    progress = _Progress(beat, total=models + len(prompts) * (models + judges))
    alone = MeshJob(replicate=1, shard=1)
    with open_mesh(alone, job.device, rank=context.rank, world_size=context.world_size) as mesh:
        codec = load_codec(job.model, root=context.root, device=mesh.device)
        _check_codec(store, codec, store_path)
        with publish_folder(context.path(job.evaluation), marker=EVALUATION_FILE) as folder:
            work = _Work(
                job=job, store=store, mesh=mesh, codec=codec, prompts=prompts, folder=folder, done=progress.next
            )
            model = load_base(job.model, root=context.root, dtype=dtype, device=mesh.device)
            found_losses: dict[Kind, Losses] = {}
            told: dict[Kind, list[Spoken]] = {}
            found_losses["base"], told["base"] = work.of(model, base, "base")
            for one in trained:
                if one.kind == "adapter":  # onto the base, which is still there
                    model = put_on(model, one.folder, base=base)
                else:
                    del model
                    gc.collect()  # two models at a time may not fit
                    model = load_base(folder_ref(one.folder), root=context.root, dtype=dtype, device=mesh.device)
                found_losses[one.kind], told[one.kind] = work.of(model, one.layout_folder(base), one.kind)
            del model
            gc.collect()
            made = work.together(told)
            made, recogniser = understood(made, job, context.root, mesh.device, folder, progress.next)
            made, similarity = voiced(made, job, context.root, mesh.device, folder, progress.next)
            spec = _spec(job, context)
            places: dict[Kind, str] = {"base": job.model.base}
            places |= {one.kind: _shown(one.folder, context.root) for one in trained}
            found = Evaluation(
                higgsc=higgsc.__version__,
                name=job.name,
                revision=job.model.revision,
                audio_tokenizer=job.model.audio_tokenizer,
                store=job.store,
                store_sha256=sha256_file(store_path / STORE_FILE),
                dtype=str(dtype).removeprefix("torch."),
                device=job.device,
                seed=job.seed,
                temperature=job.temperature,
                prompts=job.prompts,
                language=job.language,
                recogniser=recogniser,
                similarity=similarity,
                spec_sha256=None if spec is None else sha256_file(spec),
                held_out=len(store.validation),
                models={
                    kind: Measured(
                        place=place,
                        losses=found_losses[kind],
                        totals=totals(made, lambda prompt, kind=kind: prompt.spoken[kind]),  # type: ignore[misc]
                    )
                    for kind, place in places.items()
                },
                recordings=totals(made, lambda prompt: prompt.recording),
                samples=tuple(made),
            )
            (folder / EVALUATION_FILE).write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
            spec_text = None if spec is None else spec.read_text("utf-8")
            write_whole(
                folder / PAGE_FILE, page(found, folder, metrics=context.path(job.run) / "metrics.jsonl", spec=spec_text)
            )
    progress.next("done")
    return found


class _Progress:
    """Counts the parts as they begin."""

    def __init__(self, beat: Beat, total: int) -> None:
        self._beat, self._total, self._done = beat, total, 0

    def next(self, what: str) -> None:
        self._beat(min(self._done, self._total), self._total, what)
        self._done += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is done with each of the models."""

    job: EvaluateJob
    store: Store
    mesh: Mesh
    codec: Codec
    prompts: list[Task]
    folder: Path
    done: Callable[[str], None]

    def of(self, model: Any, layout: Path, who: str) -> tuple[Losses, list[Spoken]]:
        """Losses of a model, and what it makes of the prompts."""
        check_heard(model, self.store)
        self.done(f"losses, {who}")
        found = losses(model, self.store, self.mesh)
        speaker = Speaker(model, ChatLayout.load(layout), self.codec)
        told = speak_all(
            speaker,
            self.prompts,
            who=who,
            temperature=self.job.temperature,
            folder=self.folder,
            before_each=lambda name: self.done(f"{name}, {who}"),
        )
        return found, told

    def together(self, told: Mapping[Kind, list[Spoken]]) -> list[Prompt]:
        """The prompts with what each model made of them, and the recordings beside."""
        made = []
        for number, task in enumerate(self.prompts):
            reference, recording = write_recordings(task, self.codec, self.folder)
            made.append(
                Prompt(
                    id=task.sample.id,
                    speaker=task.sample.speaker,
                    reference_text=task.record["reference_text"],
                    target_text=task.record["target_text"],
                    seed=task.seed,
                    max_seconds=task.max_seconds,
                    reference=reference.name,
                    recording=heard(recording),
                    spoken={kind: by_one[number] for kind, by_one in told.items()},
                )
            )
        return made


def summary(found: Evaluation) -> str:
    """One line for people."""
    losses = ", ".join(f"{one.losses.audio:.2f} {kind}" for kind, one in found.models.items())
    line = f"validation audio loss {losses}"
    told = list(found.models.values())[-1].totals
    if not told.spoken:
        return line
    line += f"; {told.finished} of {told.spoken} {found.prompts} prompts spoken to the end"
    if found.prompts == "training":
        line += f", {told.code_accuracy:.0%} of the codes as recorded"
    if told.word_errors is not None:
        line += f"; word errors {told.word_errors:.1%}"
    if told.similarity is not None:
        line += f"; similarity {told.similarity:.2f}"
    return line


def _figures(found: Evaluation) -> dict[str, float | int | str]:
    figures: dict[str, float | int | str] = {"samples": len(found.samples)}
    for kind, one in found.models.items():
        figures |= {f"{kind}/audio_loss": one.losses.audio, f"{kind}/text_loss": one.losses.text}
        measured = one.totals.model_dump(exclude={"spoken"}, exclude_none=True)
        figures |= {f"{kind}/{name}": value for name, value in measured.items()}
    return figures


def _check_codec(store: Store, codec: Codec, path: Path) -> None:
    made_with = store.made_by.get("codec")
    if made_with != codec.fingerprint:
        raise StepError(
            f"the store was made with the audio tokenizer {str(made_with)[:12]}, not with {codec.fingerprint[:12]}",
            path=path / STORE_FILE,
            help="run the prepare step again",
        )


def _spec(job: EvaluateJob, context: StepContext) -> Path | None:
    """The resolved spec; a job that was written without a build has none."""
    path = None if job.spec is None else context.path(job.spec)
    return path if path is not None and path.is_file() else None


def _shown(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
