"""Speech at checkpoints: the same prompts with the same seeds each time, to hear what the training does.

    <run>/samples/step-0/     before the first step: the base, or what the training starts from
    <run>/samples/step-500/   ID.wav for each prompt

The training is not touched by it: its random numbers, its mode and its gradients are as they were.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch

from higgsc.catalog.codec import CODEBOOKS, FRAMES_PER_SECOND
from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.data.audio import write_wav
from higgsc.data.loading import load_codec
from higgsc.data.store import Store
from higgsc.train.decoder.heard import listening
from higgsc.train.objective.loss import LossModule
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.rows.sequence import AudioTokens
from higgsc.train.seeds import Purpose, torch_seed
from higgsc.train.speech.sampling import Sampling
from higgsc.train.speech.speak import Codes, prompt, speak, spoken_codes

logger = logging.getLogger(__name__)


class Samples:
    """Lets the model in training speak. With several processes, each speaks other prompts, and the first writes them.

    Args:
        job: Says how many prompts, and which.
        context: Where the run's folder and the audio tokenizer are.
        mesh: The processes.
        module: The model with its loss, distributed.
        store: Where the prompts lie.
        autocast: Compute dtype of the forward pass, or None to use the parameters' own.
    """

    def __init__(
        self,
        job: TrainJob,
        context: StepContext,
        mesh: Mesh,
        module: LossModule,
        store: Store,
        *,
        autocast: torch.dtype | None,
    ) -> None:
        self._job, self._context, self._mesh, self._module, self._store = job, context, mesh, module, store
        self._autocast = autocast
        self._tokens = AudioTokens.of(module.causal.config)
        settings = job.checkpoint.samples
        held_out = settings is not None and settings.prompts == "held-out" and len(store.validation) > 0
        self._chosen = (store.validation if held_out else store.train)[: settings.count if settings is not None else 0]
        self._sampling = Sampling(temperature=settings.temperature if settings is not None else 0.0)
        stems = {int(index): file_stem(store.record(int(index))["id"]) for index in self._chosen}
        twice = {stem for stem in stems.values() if list(stems.values()).count(stem) > 1}
        self._names = {index: f"{stem}-{index}" if stem in twice else stem for index, stem in stems.items()}
        self._folder = context.path(job.run) / "samples"
        # On the CPU, so that the GPU's memory is what it was computed to be; it is not needed where nothing is said.
        self._codec = load_codec(job.model, root=context.root, device="cpu") if mesh.is_first and self._any else None

    @property
    def _any(self) -> bool:
        return len(self._chosen) > 0

    def due_at_start(self) -> bool:
        """Whether the base has yet to be heard; the first process knows, and every process has to ask."""
        missing = not all((self._folder / "step-0" / f"{name}.wav").exists() for name in self._names.values())
        return self._any and self._mesh.any(self._mesh.is_first and missing)

    def speak(
        self, step: int, show: Callable[[int, str, Path, str], None], before_each: Callable[[], None] = lambda: None
    ) -> None:
        """Speak all prompts with the model as it is after `step` optimizer steps; every process has to come here.

        Args:
            step: Optimizer steps done.
            show: Called with the step, a name, the WAV file and a caption, on the first process.
            before_each: Called before each round of prompts, on all processes alike; may raise to end it here.
        """
        mesh, count = self._mesh, len(self._chosen)
        was_training = self._module.training
        self._module.eval()
        try:
            for first in range(0, count, mesh.data_size):
                before_each()
                # Sharded processes have to run forward together: one without a prompt of its own repeats the last.
                mine = min(first + mesh.data_rank, count - 1)
                spoken = mesh.gather(self._pack(*self._say(int(self._chosen[mine]))))
                for number, values in enumerate(spoken[: count - first]):
                    self._write(step, int(self._chosen[first + number]), values, show)
        finally:
            self._module.train(was_training)

    def _say(self, index: int) -> tuple[Codes, bool]:
        """One prompt's answer: codes `[T, 8]`, and whether the model ended by itself."""
        sample = self._store.sample(index)
        inputs = prompt(
            sample.prefix,
            sample.reference,
            sample.middle,
            placeholder=self._tokens.placeholder,
            delay=self._tokens.delay,
            device=self._mesh.device,
        )
        decoder = self._module.causal.model
        with (
            torch.autocast(self._mesh.device.type, self._autocast, enabled=self._autocast is not None),
            listening(decoder, sample.heard, prefix=len(sample.prefix)),
        ):
            rows = speak(
                self._module.generate,
                self._module.causal.generation_config,
                inputs,
                self._frames(index),
                seed=torch_seed(self._job.seed, Purpose.SAMPLING, index),
                sampling=self._sampling,
                together=self._mesh.in_step,
            )
        codes, finished = spoken_codes(rows)
        return codes[: self._frames(index)], finished

    def _frames(self, index: int) -> int:
        """Where speech is cut off: room to speak slowly, as in the evaluation."""
        return int(2 * self._store.target_frames[index] + 2 * FRAMES_PER_SECOND)

    def _pack(self, codes: Codes, finished: bool) -> torch.Tensor:
        """As many numbers on every process: whether it ended, how many frames, their codes, zeros."""
        longest = max(self._frames(int(index)) for index in self._chosen)
        values = torch.zeros(2 + longest * CODEBOOKS, dtype=torch.float64)
        values[0], values[1] = finished, len(codes)
        values[2 : 2 + codes.size] = torch.from_numpy(codes.astype("float64").reshape(-1))
        return values.to(self._mesh.device)

    def _write(self, step: int, index: int, values: list[float], show: Callable[[int, str, Path, str], None]) -> None:
        if self._codec is None:
            return
        frames = int(values[1])
        record = self._store.record(index)
        name = self._names[index]
        wav = self._folder / f"step-{step}" / f"{name}.wav"
        codes = torch.tensor(values[2 : 2 + frames * CODEBOOKS]).reshape(frames, CODEBOOKS).numpy().astype("uint16")
        write_wav(wav, self._codec.decode(codes) if frames else torch.zeros(0).numpy())
        ended = "" if values[0] else ", did not end by itself"
        caption = f"{record.get('target_text', record['id'])} ({frames / FRAMES_PER_SECOND:.1f} s{ended})"
        logger.info("spoken after step %d: %s", step, caption)
        show(step, f"samples/{name}", wav, caption)


def file_stem(sample_id: str) -> str:
    """An id as the name of a file: other characters than letters, digits and `._-` become `_`."""
    return re.sub(r"[^\w.-]", "_", sample_id).strip(".")[:100] or "sample"
