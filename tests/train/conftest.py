"""Tiny models of the real class, and samples of random codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.contract.jobs import (
    BatchJob,
    CheckpointJob,
    LoraJob,
    LossJob,
    MeshJob,
    ModelRef,
    OptimizerJob,
    StepContext,
    TrainJob,
)
from higgsc.contract.outcome import Interrupted, StepResult
from higgsc.data.layout import Segments
from higgsc.data.listener import Listener
from higgsc.data.store import StoredSample
from higgsc.data.store_writer import StoreWriter
from higgsc.train.model.builtin import tiny_path
from higgsc.train.rows.sequence import AudioTokens
from higgsc.train.step import run
from tests.whisper import some_features

MakeSample = Callable[..., StoredSample]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Any:
    """Two layers, width 64, released codebook size, with the text head; norms differ between text and audio."""
    config = HiggsAudioV2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        codebook_size=1026,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=50,
        audio_token_id=51,
        audio_bos_token_id=52,
        audio_delay_token_id=53,
        audio_stream_bos_id=1024,
        audio_stream_eos_id=1025,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.fixture
def tokens(model: Any) -> AudioTokens:
    return AudioTokens.of(model.config)


@pytest.fixture
def make_sample() -> MakeSample:
    """Random text and codes; the target's neighbours are the special tokens of a real prompt."""

    def make(seed: int, *, reference: int = 5, target: int = 4) -> StoredSample:
        random = np.random.default_rng(seed)

        def text(length: int) -> Any:
            return random.integers(2, 50, length)

        def codes(frames: int) -> Any:
            return random.integers(0, 1024, (frames, 8)).astype(np.uint16)

        return StoredSample(
            prefix=np.r_[text(6), 52],
            middle=np.r_[54, 50, text(7), 52],
            suffix=np.array([54, 50]),
            reference=codes(reference),
            target=codes(target),
            id=f"sample-{seed}",
            speaker="a",
        )

    return make


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project root with a store of random codes, and jobs that train `builtin:tiny` on it."""

    root: Path

    def job(self, **changes: Any) -> TrainJob:
        """A job of three steps on one CPU process; `optimizer=`, `batch=` and so on replace whole parts."""
        targets = ("self_attn.q_proj", "audio_mlp.down_proj", "audio_lm_head", "text_lm_head")
        shapes = [
            shape
            for name, shape in TINY.linear_modules().items()
            if any(name == target or name.endswith(f".{target}") for target in targets)
        ]
        parts: dict[str, Any] = {
            "higgsc": "0.0.0",
            "name": "test",
            "root": ".",
            "run": "run",
            "seed": 1,
            "device": "cpu",
            "model": ModelRef(
                base="builtin:tiny",
                revision=None,
                audio_tokenizer="builtin:tiny",
                audio_tokenizer_revision=None,
            ),
            "store": "store",
            "precision": "fp32",
            "mesh": MeshJob(replicate=1, shard=1),
            "batch": BatchJob(global_samples=4, micro_samples=4, accumulation=1),
            "lora": LoraJob(
                rank=4,
                alpha=8,
                dropout=0,
                targets=targets,
                module_count=len(shapes),
                trainable_parameters=sum(4 * (rows + columns) for rows, columns in shapes),
            ),
            "optimizer": OptimizerJob(
                learning_rate=1e-2,
                warmup_steps=0,
                decay="cosine",
                weight_decay=0.0,
                max_grad_norm=1.0,
                epochs=None,
                steps=3,
            ),
            "loss": LossJob(text=1.0, audio=1.0),
            "checkpoint": CheckpointJob(every_steps=100, keep_last=2),
            "checkpoints": "run/checkpoints",
            "log_every_steps": 1,
        }
        return TrainJob(**(parts | changes))

    def write(self, job: TrainJob) -> Path:
        """The job's file, in the project root."""
        path = self.root / "train.json"
        path.write_text(job.model_dump_json())
        return path

    def attempt(self, job: TrainJob) -> StepResult | Interrupted:
        """Carry the job out in this process, until it is done or asked to stop."""
        return run(job, StepContext.of(self.write(job), job))

    def train(self, job: TrainJob) -> StepResult:
        """Carry the job out in this process, to the end."""
        result = self.attempt(job)
        assert isinstance(result, StepResult)
        return result

    def forget(self) -> None:
        """Delete what was trained so far."""
        shutil.rmtree(self.root / "run")

    def adapter(self, step: int, run: str = "run") -> dict[str, torch.Tensor]:
        """The adapter of a checkpoint."""
        file = self.root / run / "checkpoints" / f"step-{step}" / "adapter" / "adapter_model.safetensors"
        weights: dict[str, torch.Tensor] = load_file(file)
        return weights

    def assert_trained_alike(self, step: int, run: str, expected: str = "run") -> None:
        """Two runs in float32 had the same gradients, but for rounding: AdamW's moments to 1e-4 of each one's largest.

        (At the same weights gradients are alike to 1e-5; here each run goes on from its own.) So are the weights, to
        1e-4. AdamW divides a gradient by its size, so the rounding of a small one shows: below a tenth of the
        parameter's largest, 3e-4.
        """
        folders = [self.root / name / "checkpoints" / f"step-{step}" for name in (run, expected)]
        found, wanted = (
            {name: moment.sqrt() if "exp_avg_sq" in name else moment for name, moment in moments.items()}
            for moments in (load_file(folder / "optimizer.safetensors") for folder in folders)
        )
        assert found.keys() == wanted.keys()
        for name, moment in wanted.items():
            apart = float((found[name] - moment).abs().max() / moment.abs().max())
            assert apart < 1e-4, (run, name, apart)
        weights, alone = self.adapter(step, run), self.adapter(step, expected)
        assert weights.keys() == alone.keys()
        for name, weight in alone.items():
            size = wanted[f"exp_avg_sq.{name}".replace(".weight", ".default.weight")]
            known = size > 0.1 * size.max()
            apart = (weights[name] - weight).abs()
            assert float(apart[known].max()) < 1e-4, (run, name)
            assert float(apart.max()) < 3e-4, (run, name)

    def metrics(self, run: str = "run") -> list[dict[str, float]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.root / run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project in an empty folder."""
    return make_project(tmp_path)


def make_project(root: Path, listener: Listener | None = None) -> Project:
    """Seven samples to train on and three held out, of lengths that differ; with what a Whisper heard, if one did."""
    random = np.random.default_rng(0)
    ids = AudioTokens.of(HiggsAudioV2Config.from_pretrained(tiny_path("model")))
    made_by = {"base": "builtin:tiny", "revision": None}
    with StoreWriter(root / "store", made_by=made_by, listener=listener) as store:
        for number in range(10):
            codes = [random.integers(0, 1024, (int(random.integers(2, 9)), 8)).astype(np.uint16) for _ in range(2)]
            heard = None if listener is None else some_features(number, len(codes[0]))
            clips = [
                store.add_clip(codes[0], audio=bytes(32), heard=heard),
                store.add_clip(codes[1], audio=bytes(32)),
            ]
            segments = Segments(
                prefix=random.integers(0, 256, 5), middle=random.integers(0, 256, 9), suffix=np.array([263, 261])
            )
            assert not np.isin(segments.suffix, (ids.placeholder, ids.delay)).any()
            store.add_sample(
                segments,
                reference=clips[0],
                target=clips[1],
                speaker="abc"[number % 3],
                validation=number in (2, 5, 8),
                record={"id": f"sample-{number}"},
            )
    return Project(root=root)
