"""The arithmetic of the passes, and what ends up in the job files."""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.catalog.higgs_audio_v2 import RELEASED
from higgsc.compiler.adapter import matching
from higgsc.compiler.compile import Compilation, compile_spec
from higgsc.compiler.passes.lora_targets import PRESETS
from higgsc.compiler.passes.memory import estimate_of
from higgsc.compiler.plan import Plan
from higgsc.contract import jobs
from higgsc.contract.jobs import TrainJob

SPECS = Path(__file__).parent.parent.parent / "specs"


def compile_text(tmp_path: Path, text: str) -> Compilation:
    base = (
        "apiVersion: higgsc/v1\nname: t\nmodel: {family: higgs-audio-v2, revision: abc}\n"
        "data: {train: [{path: d.json}]}\n"
        "training: {epochs: 1, global_batch: {samples: 128}, learning_rate: 1e-4}\n"
    )
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "s.yaml").write_text(f"extends: base.yaml\n{text}")
    return compile_spec(tmp_path / "s.yaml")


def plan_of(compilation: Compilation) -> Plan:
    assert compilation.compiled, compilation.diagnostics
    return compilation.compiled[0].plan


def train_job(compilation: Compilation) -> TrainJob:
    job = plan_of(compilation).step("train").job
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.parametrize(
    "hardware, parallelism, replicate, accumulation",
    [
        ("2x8xH100", "{shard: 4, tensor: 2, sequence: true}", 2, 4),
        ("8xH100", "{replicate: 4, tensor: 2}", 4, 8),
        ("8xH200", "{}", 8, 4),
        ("2x8", "{}", 16, 2),
        ("2x8xH100", "{shard: 8}", 2, 2),
        ("4xH100", "{replicate: 1, shard: 4}", 1, 8),
        ("1xCPU", "{}", 1, 32),
        ("{nodes: 2, gpus_per_node: 4, gpu: h200}", "{}", 8, 4),
    ],
)
def test_mesh_and_batch(tmp_path: Path, hardware: str, parallelism: str, replicate: int, accumulation: int) -> None:
    job = train_job(compile_text(tmp_path, f"hardware: {hardware}\nparallelism: {parallelism}\n"))
    assert job.mesh.replicate == replicate
    assert job.batch.accumulation == accumulation
    assert job.mesh.data_parallel * job.batch.micro_samples * job.batch.accumulation == job.batch.global_samples


@pytest.mark.parametrize(
    "preset, rank, parameters",
    [
        ("attention_only", 16, 9_175_040),
        ("audio_focused", 16, 19_726_336),
        ("comprehensive", 16, 39_452_672),
        ("attention_only", 64, 36_700_160),
        ("audio_focused", 64, 78_905_344),
        ("comprehensive", 64, 157_810_688),
    ],
)
def test_trainable_parameters_of_the_released_model(tmp_path: Path, preset: str, rank: int, parameters: int) -> None:
    job = train_job(compile_text(tmp_path, f"hardware: 8xH200\nlora: {{targets: {preset}, rank: {rank}}}\n"))
    assert job.lora.trainable_parameters == parameters


def test_heads_and_wildcards(tmp_path: Path) -> None:
    text = "hardware: 8xH200\nlora: {targets: ['audio_mlp.*', 'layers.0.self_attn.*_proj'], heads: [audio], rank: 64}\n"
    job = train_job(compile_text(tmp_path, text))
    assert job.lora.targets == (
        "audio_mlp.gate_proj",
        "audio_mlp.up_proj",
        "audio_mlp.down_proj",
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
        "layers.0.self_attn.v_proj",
        "layers.0.self_attn.o_proj",
        "audio_lm_head",
    )
    assert job.lora.module_count == 3 * 28 + 4 + 1


def test_suffixes_end_at_a_dot() -> None:
    modules = RELEASED.linear_modules()
    assert len(matching("mlp.gate_proj", modules)) == 28
    assert len(matching("gate_proj", modules)) == 56
    assert matching("late_proj", modules) == []
    assert matching("audio_lm_head", modules) == ["audio_lm_head"]
    assert all(len(matching(target, modules)) == 28 for targets in PRESETS.values() for target in targets)


@pytest.mark.parametrize(
    "hardware, batch, micro, accumulation",
    [
        ("8xH200", "global_batch: {samples: null, tokens: 131072}", 16384, 1),
        ("1xH200", "global_batch: {samples: null, tokens: 131072}", 16384, 8),
        ("1xH200", "global_batch: {samples: null, tokens: 100000}", 12500, 8),  # 7 rows would not divide
        ("4xH200", "global_batch: {samples: null, tokens: 65536}, micro_batch: {tokens: 8192}", 8192, 2),
    ],
)
def test_batches_by_tokens(tmp_path: Path, hardware: str, batch: str, micro: int, accumulation: int) -> None:
    job = train_job(compile_text(tmp_path, f"hardware: {hardware}\ntraining: {{{batch}}}\n"))
    assert (job.batch.micro_tokens, job.batch.accumulation) == (micro, accumulation)
    assert job.mesh.data_parallel * micro * accumulation == job.batch.global_tokens
    assert (job.batch.global_samples, job.batch.micro_samples) == (None, None)


def test_job_files_hold_no_absolute_path() -> None:
    for spec in SPECS.glob("*.yaml"):
        plan = plan_of(compile_spec(spec))
        for step in plan.steps:
            assert '"/' not in step.job.model_dump_json()


def test_steps_can_be_switched_off(tmp_path: Path) -> None:
    plan = plan_of(compile_text(tmp_path, "hardware: 1xH100\nevaluate: null\n"))
    assert [step.name for step in plan.steps] == ["prepare", "train", "merge"]
    plan = plan_of(compile_text(tmp_path, "hardware: 1xH100\nevaluate: null\nmerge: null\n"))
    assert [step.name for step in plan.steps] == ["prepare", "train"]


def test_what_is_evaluated_is_what_was_merged(tmp_path: Path) -> None:
    plan = plan_of(compile_text(tmp_path, "hardware: 1xH100\nmerge: {select: last}\n"))
    merge, evaluate = plan.step("merge").job, plan.step("evaluate").job
    assert plan.step("evaluate").needs == ("merge",)
    assert (evaluate.merged, evaluate.trained.checkpoints) == (merge.merged, merge.checkpoints)
    assert (evaluate.trained.select, evaluate.trained.best) == (merge.select, merge.best)


@pytest.mark.parametrize(
    "hardware, samples, mode, why",
    [
        ("8xH100", 4, "none", "needs 34.3 GB with none"),
        ("8xH100", 16, "full", "of the H100's 80, of which 10% stays free"),
        ("2x8", 16, "none", "no memory to compare with: `hardware: 2x8` names no GPU"),
    ],
)
def test_layers_keep_what_there_is_memory_for(hardware: str, samples: int, mode: str, why: str, tmp_path: Path) -> None:
    text = f"hardware: {hardware}\ntraining: {{micro_batch: {{samples: {samples}}}, global_batch: {{samples: 512}}}}\n"
    (made,) = compile_text(tmp_path, text).compiled
    derived = made.ir.derived["training.activation_checkpointing"]
    assert derived.value == mode
    assert why in derived.formula
    job = made.plan.step("train").job
    assert isinstance(job, jobs.TrainJob)
    assert job.activation_checkpointing == mode
    assert ("full activation checkpointing" in estimate_of(made.ir).row) == (mode == "full")


def test_what_layers_keep_may_be_said(tmp_path: Path) -> None:
    text = "hardware: 8xH100\ntraining: {micro_batch: {samples: 16}, activation_checkpointing: none}\n"
    (found,) = (d for d in compile_text(tmp_path, text).diagnostics if d.code == "HC331")
    assert "`training: {activation_checkpointing: full}`" in found.help


def test_a_tensor_group_is_the_way_out_where_nothing_else_fits(tmp_path: Path) -> None:
    """One sample of 600 s is too long for a small GPU, even if layers keep only their inputs and all share the base."""
    text = "hardware: 8xRTX4090\nprecision: fp32\ndata: {limits: {max_seconds: 600}}\nlora: {targets: comprehensive}\n"
    text += "training: {micro_batch: {samples: 1}, activation_checkpointing: full}\nparallelism: {shard: 8}\n"
    (found,) = (d for d in compile_text(tmp_path, text).diagnostics if d.code == "HC331")
    mesh = "parallelism: {shard: 2, tensor: 4, sequence: true}"
    assert found.help == f"`{mesh}` fits, and so do clips of up to `max_seconds: 303`"
    assert compile_text(tmp_path, text.replace("parallelism: {shard: 8}", mesh)).compiled


def test_a_wrong_mesh_is_one_message(tmp_path: Path) -> None:
    """The batch depends on the mesh; it says nothing when the mesh is wrong, but other passes still speak."""
    compilation = compile_text(tmp_path, "hardware: 2x8\nparallelism: {shard: 3}\nlora: {targets: [nothing]}\n")
    assert [d.code for d in compilation.diagnostics] == ["HC301", "HC501"]


def test_a_merge_is_quantised_if_asked(tmp_path: Path) -> None:
    def merge(text: str) -> jobs.MergeJob:
        (job,) = (step.job for step in plan_of(compile_text(tmp_path, text)).steps if step.name == "merge")
        assert isinstance(job, jobs.MergeJob)
        return job

    assert merge("hardware: 1xH100\n").quantize is None
    assert merge("hardware: 1xH100\nmerge: {quantize: fp8}\n").quantize == "fp8"
