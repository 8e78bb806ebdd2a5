"""The closed forms of `higgsc.catalog` against the trainer: traced on fakes, and run for real on a tiny base.

Three counts of the same bytes have to agree: the closed form, the trace (`higgsc plan --verify`), and, where a CPU can
carry it out, the train step itself under a counter that shares no code with the other two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import HiggsAudioV2ForConditionalGeneration

from higgsc.catalog.adapter import AdapterShape
from higgsc.catalog.arithmetic import flops_per_token
from higgsc.catalog.higgs_audio_v2 import TINY
from higgsc.catalog.memory import memory
from higgsc.catalog.setup import Sample, Setup
from higgsc.cli.plan import TOLERANCE
from higgsc.compiler.compile import compile_spec
from higgsc.compiler.ir import Ir
from higgsc.compiler.passes.memory import estimate_of, setup_of
from higgsc.contract.jobs import BatchJob, LoraJob, TrainJob
from higgsc.data.layout import Segments
from higgsc.data.store_writer import StoreWriter
from higgsc.train.model.build import add_lora
from higgsc.train.objective.loss import LossModule
from higgsc.train.prediction.trace import Lengths, _config, _sequence, peak
from higgsc.train.rows.row import pack
from higgsc.train.rows.sequence import AudioTokens

from .conftest import Project
from .test_layers import added

ROOT = Path(__file__).parent.parent.parent
SPECS = ROOT / "specs"
SHORT = ["data.limits.max_seconds=3"]
WHISPER = ["model.whisper.encoder=openai/whisper-large-v3", "model.whisper.revision=06f233f"]


def shipped() -> Iterator[Any]:
    """Every point of every shipped spec; those that differ only in what memory does not depend on, once."""
    seen = set()
    for spec in sorted(SPECS.glob("*.yaml")):
        for made in compile_spec(spec).compiled:
            key = (replace(setup_of(made.ir), replicate=1), made.ir.spec.data.limits.max_seconds)
            if key not in seen:
                seen.add(key)
                yield pytest.param(made.ir, made.plan.step("train").job, id=made.plan.name)


def traced(ir: Ir, job: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part: computed, and traced."""
    assert isinstance(job, TrainJob)
    found = estimate_of(ir)
    return found.memory.parts, peak(job, Lengths(**asdict(found.longest)))


@pytest.mark.slow
@pytest.mark.parametrize("ir, job", list(shipped()))
def test_every_shipped_spec_agrees_with_the_trace(ir: Ir, job: TrainJob) -> None:
    computed, measured = traced(ir, job)
    assert sum(computed.values()) == pytest.approx(sum(measured.values()), rel=TOLERANCE)
    for part in ("base", "adapter", "optimizer", "gradients", "gathered"):
        assert computed[part] == pytest.approx(measured[part], rel=0.01, abs=1e6), part


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec, overrides",
    [
        # Sharded traces take their time, most of it for each adapted module.
        ("zero-shot", ["hardware=1x4", "parallelism.shard=4", "lora.dropout=0.1", "lora.heads=[audio, text]"]),
        ("zero-shot", ["hardware=8xH100", "parallelism.shard=8", "precision=fp32", "training.micro_batch.samples=2"]),
        ("zero-shot", ["hardware=1x1", "precision=fp32", "lora.dropout=0.05", "lora.targets=comprehensive"]),
        # So short that gathering the first weights takes the most.
        ("zero-shot", ["hardware=8xH100", "parallelism.shard=8", "training.micro_batch.samples=1", *SHORT]),
        ("zero-shot", ["lora.dropout=0.1", "lora.heads=[audio]", "training.micro_batch.samples=2"]),
        (
            "zero-shot",
            ["training.activation_checkpointing=full", "lora.targets=comprehensive", "training.micro_batch.samples=2"],
        ),
        ("zero-shot", ["training.activation_checkpointing=selective", "lora.dropout=0.1", "precision=fp32"]),
        ("zero-shot", ["training.activation_checkpointing=full", "hardware=1x4", "parallelism.shard=4"]),
        ("zero-shot", ["lora.dora=true", "lora.dropout=0.1", "lora.heads=[text]", "training.micro_batch.samples=2"]),
        ("zero-shot", ["lora.rank_pattern={q_proj: 512}", "lora.full_heads=[text]", "training.micro_batch.samples=1"]),
        ("zero-shot", ["hardware=8xH100", "parallelism={tensor: 8, sequence: true}", "lora.targets=comprehensive"]),
        ("zero-shot", ["hardware=2xH100", "parallelism={tensor: 2}", "precision=fp32", "lora.heads=[audio]"]),
        (
            "zero-shot",
            ["hardware=8xH100", "parallelism={tensor: 8, sequence: true}", "training.activation_checkpointing=full"],
        ),
        (
            "zero-shot",
            [
                "hardware=2xH100",
                "parallelism={tensor: 2, sequence: true}",
                "training.activation_checkpointing=selective",
                "lora.dropout=0.1",
            ],
        ),
        ("zero-shot", ["lora.targets=audio_focused", "data.limits.max_seconds=3", "training.micro_batch.samples=1"]),
        ("zero-shot", [*WHISPER, "training.micro_batch.samples=2"]),
        ("zero-shot", [*WHISPER, "hardware=1x4", "parallelism.shard=4", "training.activation_checkpointing=full"]),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_variants_agree_with_the_trace(spec: str, overrides: list[str]) -> None:
    compilation = compile_spec(SPECS / f"{spec}.yaml", overrides=tuple(overrides))
    (made,) = compilation.compiled
    computed, measured = traced(made.ir, made.plan.step("train").job)
    assert sum(computed.values()) == pytest.approx(sum(measured.values()), rel=TOLERANCE)
    if set(WHISPER) <= set(overrides):  # 15.7 MB of weights are within the tolerance; AdamW's counters are 4 bytes each
        for part in ("adapter", "optimizer", "gathered"):
            assert computed[part] == pytest.approx(measured[part], abs=10_000), part


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.quantize=fp8", "lora.targets=comprehensive", "training.micro_batch.samples=2"],
        ["model.quantize=nf4", "training.activation_checkpointing=full", "training.micro_batch.samples=1", *SHORT],
        ["model.quantize=int8", "hardware=1x4", "parallelism.shard=4", "lora.targets=attention_only", *SHORT],
    ],
    ids=",".join,
)
def test_a_quantised_base_agrees_with_the_trace(overrides: list[str]) -> None:
    (made,) = compile_spec(SPECS / "zero-shot.yaml", overrides=("hardware=1xH100", *overrides)).compiled
    computed, measured = traced(made.ir, made.plan.step("train").job)
    assert sum(computed.values()) == pytest.approx(sum(measured.values()), rel=0.03)
    for part in ("base", "gathered", "adapter"):
        assert computed[part] == pytest.approx(measured[part], rel=0.01, abs=1e6), part


class AliveBytes(TorchDispatchMode):
    """Most bytes of tensors alive at once: a counter as simple as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: Any = WeakIdKeyDictionary()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                self.storages[leaf.untyped_storage()] = None
        self.most = max(self.most, sum(storage.nbytes() for storage in self.storages))
        return result


SAMPLE = Sample(reference=90, target=80, text=40)


@pytest.fixture
def equal_samples(tmp_path: Path) -> Project:
    """A store of samples that all have the length of `SAMPLE`."""
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", made_by={"base": "builtin:tiny", "revision": None}) as store:
        for number in range(10):
            lengths = (SAMPLE.reference, SAMPLE.target)
            clips = [
                store.add_clip(random.integers(0, 1024, (n, 8)).astype(np.uint16), audio=bytes(32)) for n in lengths
            ]
            segments = Segments(
                prefix=random.integers(0, 256, SAMPLE.text - 8),
                middle=random.integers(0, 256, 6),
                suffix=np.array([263, 261]),
            )
            store.add_sample(
                segments,
                reference=clips[0],
                target=clips[1],
                speaker="a",
                validation=number < 2,
                record={"id": f"sample-{number}"},
            )
    return Project(root=tmp_path)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_train_step_itself_uses_what_is_computed(equal_samples: Project, accumulation: int) -> None:
    """In float32, on a CPU: bfloat16 and GPUs have other kernels, which the trace has to stand for."""
    job = equal_samples.job(
        batch=BatchJob(global_samples=4 * accumulation, micro_samples=4, accumulation=accumulation),
        optimizer=equal_samples.job().optimizer.model_copy(update={"steps": 2}),
    )
    with AliveBytes() as counter:
        equal_samples.train(job)
    computed = memory(_setup(job), SAMPLE, 4).total
    measured = sum(peak(job, Lengths(**asdict(SAMPLE))).values())
    assert computed == pytest.approx(counter.most, rel=TOLERANCE)
    assert measured == pytest.approx(counter.most, rel=TOLERANCE)


def _setup(job: TrainJob) -> Setup:
    return Setup(
        shape=TINY,
        precision=job.precision,
        lora=AdapterShape(targets=job.lora.targets, rank=job.lora.rank, dropout=job.lora.dropout),
        replicate=job.mesh.replicate,
        shard=job.mesh.shard,
        accumulation=job.batch.accumulation,
    )


def test_operations_are_those_that_torch_counts() -> None:
    """A layer's share, from two depths: in the first layer, frozen weights need no gradient of their input, and the
    last one goes on with labelled tokens alone. The attention's operations are not counted.
    """
    sample, samples, targets = Sample(reference=40, target=50, text=30), 2, ("self_attn.v_proj", "audio_mlp.down_proj")
    counted, computed = {}, {}
    row = samples * sample.tokens
    for layers in (2, 3):
        shape = replace(TINY, layers=layers)
        sizes = [size for name, size in shape.linear_modules().items() if name.endswith(targets)]
        lora = LoraJob(
            rank=8,
            alpha=8,
            dropout=0,
            targets=targets,
            module_count=len(sizes),
            trainable_parameters=8 * sum(map(sum, sizes)),
        )
        config = _config(shape)
        base = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).eval()
        module = LossModule(add_lora(base, lora, seed=0)).train()
        lengths = Lengths(**asdict(sample))
        batch = pack([_sequence(lengths, shape, AudioTokens.of(config))] * samples)
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
            sums = module(batch)
            (sums.audio.sum() + sums.text).backward()
        counted[layers] = counter.get_total_flops()
        setup = Setup(
            shape=shape,
            precision="fp32",
            lora=AdapterShape(targets=targets, rank=8),
            replicate=1,
            shard=1,
            accumulation=1,
        )
        share = sample.audio_rows / sample.tokens
        computed[layers] = row * flops_per_token(setup, keys=0, audio_share=share)
    assert counted[3] - counted[2] == pytest.approx(computed[3] - computed[2], rel=1e-9)
