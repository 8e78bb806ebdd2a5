"""Tensor and sequence parallelism: the same gradients, the same training, the same checkpoints as one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from higgsc.contract.jobs import BatchJob, CheckpointJob, MeshJob
from higgsc.train.parallel.tensor import Placement, placement

from .conftest import Project
from .ranks import errors, torchrun, train

DRIVER = Path(__file__).parent / "mesh_driver.py"
MATRICES = 2 * (4 * 32 * 32 + 6 * 32 * 48 + 3 * (4 * 32 + 6 * 48))
"""Numbers in what is divided: in two layers, the base's matrices and the adapters' divided halves, of rank 3."""
PAIR = {"replicate": 1, "shard": 1, "tensor": 2}
PAIR_SEQUENCE = PAIR | {"sequence": True}
TWO_D = {"replicate": 1, "shard": 2, "tensor": 2}
TWO: list[dict[str, Any]] = [
    {"mesh": {"replicate": 2, "shard": 1}},
    {"mesh": {"replicate": 1, "shard": 2}},
    {"mesh": PAIR},
    {"mesh": PAIR_SEQUENCE},
    {"mesh": PAIR, "dropout": 0.5},
    {"mesh": PAIR_SEQUENCE, "dropout": 0.5},
    {"mesh": PAIR, "everything": True},
    {"mesh": PAIR_SEQUENCE, "everything": True},
    {"mesh": {"replicate": 2, "shard": 1}, "whole": True},
    {"mesh": {"replicate": 1, "shard": 2}, "whole": True},
    {"mesh": PAIR_SEQUENCE, "whole": True},
    {"mesh": PAIR_SEQUENCE, "dropout": 0.5, "checkpointing": True},
    {"mesh": {"replicate": 2, "shard": 1}, "voices": True},
    {"mesh": PAIR_SEQUENCE, "voices": True},
    {"mesh": {"replicate": 2, "shard": 1}, "listens": True},
    {"mesh": {"replicate": 1, "shard": 2}, "listens": True},
    {"mesh": PAIR, "listens": True},
    {"mesh": PAIR_SEQUENCE, "listens": True, "checkpointing": True},
]
FOUR: list[dict[str, Any]] = [
    {"mesh": {"replicate": 2, "shard": 2}},
    {"mesh": {"replicate": 1, "shard": 1, "tensor": 4}},
    {"mesh": {"replicate": 1, "shard": 1, "tensor": 4, "sequence": True}},
    {"mesh": {"replicate": 2, "shard": 1, "tensor": 2}},
    {"mesh": {"replicate": 2, "shard": 1, "tensor": 2, "sequence": True}},
    {"mesh": TWO_D},
    {"mesh": TWO_D | {"sequence": True}},
    {"mesh": TWO_D | {"sequence": True}, "everything": True},
    {"mesh": TWO_D | {"sequence": True}, "checkpointing": True},
    {"mesh": {"replicate": 2, "shard": 1, "tensor": 2}, "voices": True},
    {"mesh": TWO_D | {"sequence": True}, "voices": True},
    {"mesh": TWO_D | {"sequence": True}, "listens": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("processes, cases", [(2, TWO), (4, FOUR)])
def test_gradients_on_every_mesh_are_those_of_one_process(processes: int, cases: list[dict[str, Any]]) -> None:
    """To 1e-5 of each parameter's largest, in float32; norm, clipping and whole values too (see the driver)."""
    finished = torchrun(processes, DRIVER, json.dumps(cases))
    assert finished.returncode == 0, errors(finished)
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [{name: line[name] for name in case} for line, case in zip(found, cases, strict=True)] == cases
    if processes == 2:
        whole, pair = (next(line["held"] for line in found if line["mesh"] == mesh) for mesh in (TWO[0]["mesh"], PAIR))
        assert whole - pair == MATRICES // 2


@pytest.mark.slow
def test_a_checkpoint_of_any_mesh_goes_on_on_any_other(project: Project) -> None:
    """Six meshes take a step each, on four ranks, each from the checkpoint of the one before."""
    optimizer = project.job().optimizer.model_copy(update={"decay": "constant", "learning_rate": 1e-3})
    meshes = [
        MeshJob(replicate=4, shard=1),
        MeshJob(replicate=2, shard=1, tensor=2),
        MeshJob(replicate=1, shard=2, tensor=2, sequence=True),
        MeshJob(replicate=2, shard=2),
        MeshJob(replicate=2, shard=1, tensor=2, sequence=True),
        MeshJob(replicate=1, shard=2, tensor=2),
    ]
    checkpoint = CheckpointJob(every_steps=100, keep_last=10)
    project.train(project.job(optimizer=optimizer.model_copy(update={"steps": len(meshes)}), checkpoint=checkpoint))
    alone, expected = project.adapter(len(meshes)), project.metrics()
    project.forget()

    jobs = [
        project.job(
            mesh=mesh,
            batch=BatchJob(global_samples=4, micro_samples=1, accumulation=4 // mesh.data_parallel),
            optimizer=optimizer.model_copy(update={"steps": number}),
            checkpoint=checkpoint,
        )
        for number, mesh in enumerate(meshes, start=1)
    ]
    finished = train(project, 4, *jobs)
    assert finished.returncode == 0, errors(finished)
    together = project.adapter(len(meshes))
    assert {name: tensor.shape for name, tensor in together.items()} == {n: t.shape for n, t in alone.items()}
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    metrics = project.metrics()
    assert [line["step"] for line in metrics] == list(range(1, len(meshes) + 1))
    for line, other in zip(metrics, expected, strict=True):
        for name in ("loss/total", "loss/audio", "loss/text", "grad_norm", "loss/audio_codebook_7"):
            assert line[name] == pytest.approx(other[name], rel=1e-5), name
    assert metrics[-1]["validation/audio_loss"] == pytest.approx(expected[-1]["validation/audio_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("self_attn.q_proj.base_layer.weight", Placement(0, partial=False)),
        ("self_attn.o_proj.weight", Placement(1, partial=False)),
        ("audio_mlp.up_proj.lora_A.default.weight", Placement(None, partial=True)),
        ("audio_mlp.up_proj.lora_B.default.weight", Placement(0, partial=False)),
        ("mlp.down_proj.lora_A.default.weight", Placement(1, partial=False)),
        ("mlp.down_proj.lora_B.default.weight", Placement(None, partial=True)),
        ("audio_input_layernorm.weight", Placement(None, partial=True)),
    ],
)
def test_where_a_parameter_lies(name: str, expected: Placement) -> None:
    assert placement(f"model.base_model.model.model.layers.3.{name}", sequence=True) == expected


def test_what_lies_whole_outside_the_layers() -> None:
    whole = Placement(None, partial=False)
    for name in ("audio_lm_head.lora_A.default", "text_lm_head.lora_B.default", "model.embed_tokens"):
        assert placement(f"model.base_model.model.{name}.weight", sequence=True) == whole
    for sequence in (False, True):
        assert placement("model.norm.weight", sequence=sequence) == Placement(None, partial=sequence)
