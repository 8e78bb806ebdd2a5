"""What the models that measure say of all recordings: the recogniser's transcripts, and how alike the voices are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from higgsc.contract.evaluation import Heard, Judge, Prompt
from higgsc.contract.jobs import EvaluateJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.deploy.evaluate.judges import judge_config
from higgsc.deploy.evaluate.measures import read_back
from higgsc.deploy.evaluate.recognise import Recogniser
from higgsc.deploy.evaluate.similarity import Voices
from higgsc.deploy.evaluate.words import error_rates

Done = Callable[[str], None]


def check_judges(job: EvaluateJob, root: Path) -> None:
    """Refuse before anything large is loaded.

    Raises:
        StepError: A model that the job names is not there, or the package that counts errors is not (66); or it is
            another kind of model (65).
    """
    if job.recogniser is not None:
        if importlib.util.find_spec("jiwer") is None:
            raise StepError(
                "`evaluate.recogniser` needs the package jiwer, which is not installed",
                code=ExitCode.MISSING_INPUT,
                help="pip install 'higgsc[eval]', or leave `recogniser` out",
            )
        judge_config(job.recogniser, "recogniser", "whisper", root=root)
    if job.similarity is not None:
        judge_config(job.similarity, "similarity", "wavlm", root=root)


def understood(
    prompts: list[Prompt], job: EvaluateJob, root: Path, device: torch.device, folder: Path, done: Done
) -> tuple[list[Prompt], Judge | None]:
    """The prompts with transcripts and their errors; as they are without a recogniser."""
    if job.recogniser is None or not prompts:
        return prompts, None
    recogniser = Recogniser.load(job.recogniser, root=root, device=device, language=job.language)

    made = []
    for prompt in prompts:

        def listen(
            one: Heard, recogniser: Recogniser = recogniser, text: str = prompt.target_text
        ) -> dict[str, object]:
            transcript = recogniser.transcribe(read_back(folder / one.wav))
            errors = error_rates([text], [transcript])
            return {
                "transcript": transcript,
                "word_errors": None if errors is None else errors.words,
                "character_errors": None if errors is None else errors.characters,
            }

        made.append(_each(prompt, listen, done, "transcript"))
    return made, recogniser.judge


def voiced(
    prompts: list[Prompt], job: EvaluateJob, root: Path, device: torch.device, folder: Path, done: Done
) -> tuple[list[Prompt], Judge | None]:
    """The prompts with how alike each voice is to its reference; as they are without a model that compares."""
    if job.similarity is None or not prompts:
        return prompts, None
    voices = Voices.load(job.similarity, root=root, device=device)
    made = []
    for prompt in prompts:
        wanted = voices.embed(read_back(folder / prompt.reference))

        def compare(one: Heard, wanted: torch.Tensor | None = wanted) -> dict[str, object]:
            return {"similarity": voices.similarity(voices.embed(read_back(folder / one.wav)), wanted)}

        made.append(_each(prompt, compare, done, "voice"))
    return made, voices.judge


def _each(prompt: Prompt, measure: Callable[[Heard], dict[str, object]], done: Done, what: str) -> Prompt:
    """A prompt with more figures of its recording and of all that was spoken."""
    done(f"{prompt.id}, {what}")
    recording = prompt.recording.model_copy(update=measure(prompt.recording))
    spoken = {kind: one.model_copy(update=measure(one)) for kind, one in prompt.spoken.items()}
    return prompt.model_copy(update={"recording": recording, "spoken": spoken})
