"""A run that fits in a second: a store of real clips, checkpoints, and jobs about them, on the tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("soundfile")


from higgsc.contract.jobs import EvaluateJob, MergeJob, ModelRef, SelectJob, StepContext  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.codec import Codec  # noqa: E402
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout  # noqa: E402
from higgsc.data.store_writer import StoreWriter  # noqa: E402
from higgsc.data.whisper import WhisperEncoder  # noqa: E402
from higgsc.deploy.merge import step as merge  # noqa: E402
from higgsc.train.checkpoints.checkpoint import save_checkpoint  # noqa: E402
from higgsc.train.checkpoints.progress import Progress  # noqa: E402
from higgsc.train.model.build import adapter_parameters, load_base  # noqa: E402
from higgsc.train.report.metrics import SavedMeter  # noqa: E402
from higgsc.train.report.speed import Window  # noqa: E402

CLIPS = Path(__file__).parents[2] / "specs/data/quickstart/audio"
TINY = ModelRef(base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None)
COMMON: dict[str, Any] = {
    "higgsc": "0", "name": "t", "root": "..", "run": "runs/t", "seed": 1, "device": "cpu", "model": TINY,
}  # fmt: skip


@pytest.fixture(scope="module")
def codec() -> Codec:
    from higgsc.train.model.builtin import tiny_path

    return Codec.load(tiny_path("audio_tokenizer"))


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return StepContext(job_path=tmp_path / "jobs" / "j.json", root=tmp_path, rank=0, world_size=1)


@pytest.fixture
def write_store(tmp_path: Path, codec: Codec) -> Callable[..., Path]:
    """Four samples of real clips, the last `held_out` of them for validation."""

    def write(*, held_out: int, codec_name: str | None = None, listener: WhisperEncoder | None = None) -> Path:
        layout = ChatLayout.load("builtin:tiny")
        path = tmp_path / "runs/t/store"
        who = None if listener is None else listener.listener
        with StoreWriter(path, made_by={"codec": codec_name or codec.fingerprint}, listener=who) as writer:
            for number in range(4):
                waves = [
                    read_mono(CLIPS / f"huda-0{number + n}.flac", max_seconds=30)[: 24_000 * seconds // 2]
                    for n, seconds in ((1, 2), (2, 1))
                ]
                heard = None if listener is None else listener.encode(waves[0])
                reference = writer.add_clip(codec.encode(waves[0]), audio=bytes(32), heard=heard)
                target = writer.add_clip(codec.encode(waves[1]), audio=bytes(32))
                texts = {"reference_text": f"reference {number}", "target_text": f"target {number}"}
                writer.add_sample(
                    layout.segments(system=DEFAULT_SYSTEM, scene=None, **texts),
                    reference=reference,
                    target=target,
                    speaker="huda",
                    validation=number >= 4 - held_out,
                    record={"id": f"set/a:{number}", **texts},
                )
        return path

    return write


def lora(rank: int = 16, **options: Any) -> Any:
    model = load_base(TINY, root=Path.cwd(), dtype=torch.float32, device=torch.device("cpu"))
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", **options)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)


def save(root: Path, model: Any, step: int, loss: float, ref: ModelRef = TINY) -> Path:
    return save_checkpoint(
        root / "runs/t/checkpoints",
        step,
        model=model,
        weights={name: p.detach() for name, p in adapter_parameters(model).items()},
        ref=ref,
        metrics={"validation/audio_loss": loss},
        write_more=describe,
    )


def describe(draft: Path) -> None:
    """What the train step writes beside an adapter, as far as the model card speaks of it."""
    lora = {"rank": 8, "alpha": 8.0, "rank_pattern": {}, "trainable_parameters": 1}
    job = {
        **COMMON,
        "model": TINY.model_dump(),
        "store": "runs/t/store",
        "checkpoints": "runs/t/checkpoints",
        "lora": lora,
    }
    (draft / "job.json").write_text(json.dumps(job))
    none = SavedMeter(sums=(), audio_labels=0, text_labels=0, anchors=0)
    progress = Progress(
        step=1, seconds=0, store_sha256="0" * 64, versions={}, grad_norm=0, since_log=none, since_checkpoint=none,
        window=Window(),
    )  # fmt: skip
    (draft / "progress.json").write_text(progress.model_dump_json())


def merge_job(**changes: Any) -> MergeJob:
    settings = {"checkpoints": "runs/t/checkpoints", "select": "best", "dtype": "fp32", "merged": "runs/t/merged"}
    return MergeJob(**{**COMMON, **settings, **changes})


def evaluate_job(**changes: Any) -> EvaluateJob:
    settings = {
        "store": "runs/t/store",
        "merged": "runs/t/merged",
        "trained": SelectJob(checkpoints="runs/t/checkpoints", select="best", best="validation/audio_loss"),
        "samples": 8,
        "prompts": "held-out",
        "temperature": 0.0,
        "evaluation": "runs/t/evaluation",
    }
    return EvaluateJob(**{**COMMON, **settings, **changes})


@pytest.fixture
def merged(tmp_path: Path, context: StepContext) -> Path:
    model = lora(rank=4)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save(tmp_path, model, 1, 5.0)
    merge.run(merge_job(dtype="bf16"), context)
    return tmp_path / "runs/t/merged"
