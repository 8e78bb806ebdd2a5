"""Runs on every rank under torchrun: the gradients of many meshes, each against one process, in one start.

Every rank computes the whole global batch by itself, then its share of it on each mesh in
turn, and compares. Prints one line of JSON for each mesh, from the first rank; a rank that finds a difference fails.

With dropout, only column-parallel matrices have adapters: their inputs are whole on every rank of a tensor group, so
that dropout is that of one process if the ranks draw alike.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.contract.jobs import ContrastiveJob, LoraJob, LossJob, MeshJob
from higgsc.data.store import StoredSample
from higgsc.train.checkpoints.progress import seed_dropout
from higgsc.train.decoder.heard import Heard
from higgsc.train.decoder.routes import Routes
from higgsc.train.gradients import Comparison
from higgsc.train.model.build import adapter_parameters, add_lora
from higgsc.train.model.projector import add_projector
from higgsc.train.objective.contrastive import Voices, voices
from higgsc.train.objective.loss import LossModule, objective
from higgsc.train.parallel.mesh import Mesh, device_mesh
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import AudioTokens, build_sequence
from tests.whisper import some_features, some_listener

TARGETS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"{network}.{name}_proj" for network in ("mlp", "audio_mlp") for name in ("gate", "up", "down")),
    "audio_lm_head",
    "text_lm_head",
)
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
RANK = 3
TOLERANCE = 1e-5
WEIGHTS = LossJob(text=1.0, audio=1.0, contrastive=ContrastiveJob(weight=1.0, temperature=0.5))
TOGETHER = 4
"""Samples whose voices are compared: in one row of one process, or in as many rows as there are shares of the data."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how."""

    dropout: float = 0.0
    everything: bool = False
    """All parameters instead of adapters: norms, embeddings and heads too."""
    whole: bool = False
    """All parameters as the train step trains them: FSDP2 holds them on every mesh."""
    checkpointing: bool = False
    """Layers compute their activations a second time in the backward pass."""
    voices: bool = False
    """The contrastive loss is on; rows are of samples with both clips, as it needs them."""
    listens: bool = False
    """What a Whisper heard of the references is added by a projector that is no zero any more."""


def build(case: Case, mesh: Mesh) -> LossModule:
    """Two layers with four heads of each kind; norms differ, and no adapter is a no-op."""
    compare = Comparison(WEIGHTS.contrastive, mesh)
    targets = tuple(target for target in TARGETS if case.dropout == 0 or target.endswith(COLUMNS))
    config = HiggsAudioV2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, codebook_size=1026, pad_token_id=0, bos_token_id=1, eos_token_id=50,
        audio_token_id=51, audio_bos_token_id=52, audio_delay_token_id=53,
        audio_stream_bos_id=1024, audio_stream_eos_id=1025,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if case.everything or case.whole:
        return LossModule(model, compare).train()
    sizes = [
        (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f".{name}".endswith(tuple(f".{target}" for target in targets))
    ]
    adapted = add_lora(
        model,
        LoraJob(
            rank=RANK,
            alpha=6,
            dropout=case.dropout,
            targets=targets,
            module_count=len(sizes),
            trainable_parameters=RANK * sum(map(sum, sizes)),
        ),
        seed=1,
    )
    if case.listens:
        add_projector(model, some_listener())
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_parameters(adapted).values():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return LossModule(adapted, compare).train()


def make_sample(random: np.random.Generator, frames: int) -> StoredSample:
    """Random text and codes."""
    codes = [random.integers(0, 1024, (n, 8)).astype(np.uint16) for n in (frames, frames + 2)]
    return StoredSample(
        prefix=np.r_[random.integers(2, 50, 5), 52],
        middle=np.r_[54, 50, random.integers(2, 50, 4), 52],
        suffix=np.array([54, 50]),
        reference=codes[0],
        target=codes[1],
        heard=some_features(frames, frames),
        id="",
        speaker="a",
    )


def compared(tokens: AudioTokens, mesh: Mesh) -> list[tuple[PackedBatch, Voices | None]]:
    """This process's rows of two micro-batches of `TOGETHER` samples, each of a speaker of its own."""
    random, own = np.random.default_rng(0), TOGETHER // mesh.data_size
    rows = []
    for _ in range(2):
        samples = [make_sample(random, 2 + k) for k in range(TOGETHER)]
        mine = slice(mesh.data_rank * own, (mesh.data_rank + 1) * own)
        row = pack([build_sequence(sample, tokens) for sample in samples[mine]])
        rows.append((row, voices(samples[mine], np.arange(TOGETHER)[mine])))
    return rows


def batches(tokens: AudioTokens) -> list[PackedBatch]:
    """Rows of odd lengths: usual ones, one without text, one without audio."""
    random = np.random.default_rng(0)
    rows = [pack([build_sequence(make_sample(random, 2 + k), tokens) for k in range(2 + n)]) for n in range(2)]
    usual = rows[0]
    audio = usual.input_ids[0] == tokens.placeholder
    audio |= usual.input_ids[0] == tokens.delay
    rows += [_only(usual, kept, audio) for kept in (audio, ~audio)]
    assert any(row.tokens % 2 for row in rows)
    assert any(row.tokens % 4 for row in rows)
    return rows


def _only(row: PackedBatch, kept: Tensor, audio: Tensor) -> PackedBatch:
    """A row of the kept positions alone, with the labels that are theirs."""
    place = torch.cumsum(kept, 0) - 1
    with_audio, with_text = kept[row.audio_positions], kept[row.text_positions]
    assert row.heard is not None
    there = kept[row.heard.places]
    audio_positions, text_positions = place[row.audio_positions[with_audio]], place[row.text_positions[with_text]]
    return replace(
        row,
        input_ids=row.input_ids[:, kept],
        position_ids=torch.arange(int(kept.sum()))[None],
        audio_input_ids=row.audio_input_ids[:, kept[audio]],
        routes=Routes.of(
            audio[kept].numpy(),
            [int(kept.sum())],
            audio_labels=audio_positions.numpy(),
            text_labels=text_positions.numpy(),
        ),
        audio_positions=audio_positions,
        audio_labels=row.audio_labels[with_audio],
        text_positions=text_positions,
        text_labels=row.text_labels[with_text],
        heard=Heard(features=row.heard.features[there], places=place[row.heard.places[there]]),
    )


def gradients(module: LossModule, mesh: Mesh, case: Case) -> tuple[dict[str, Tensor], float]:
    """Whole gradients of the global batch before clipping, and their norm; nearly all of it is clipped away."""
    tokens = AudioTokens.of(module.causal.config)
    mine: list[tuple[PackedBatch, Voices | None]]
    if case.voices:
        mine, rows = compared(tokens, mesh), [row for row, _ in compared(tokens, Mesh.single(CPU))]
    else:
        rows = batches(tokens)
        mine = [(row, None) for row in rows[mesh.data_rank :: mesh.data_size]]
    mesh.divide(module)
    for layer in module.causal.model.layers if case.checkpointing else ():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    mesh.distribute(module)
    seed_dropout(0, mesh.data_rank, 0)
    parameters = adapter_parameters(module)
    labels = {name: sum(getattr(row, f"{name}_labels").numel() for row in rows) for name in ("audio", "text")}
    for number, (row, where) in enumerate(mine, start=1):
        mesh.accumulate(module, last=number == len(mine))
        sums = module(row, where)
        assert (sums.contrastive.item() > 0) is case.voices
        loss = objective(sums, WEIGHTS, audio_labels=labels["audio"], text_labels=labels["text"], anchors=2 * TOGETHER)
        mesh.scaled(loss).backward()  # type: ignore[no-untyped-call]
    mesh.reduce_gradients(parameters)
    whole = {name: mesh.whole(name, _gradient(parameter)).clone() for name, parameter in parameters.items()}
    norm = float(mesh.clip_gradients(parameters, 1e-3))
    for name, parameter in parameters.items():
        clipped = mesh.whole(name, _gradient(parameter))
        torch.testing.assert_close(clipped, whole[name] * (1e-3 / norm), rtol=1e-3, atol=1e-9)
    return whole, norm


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def check_parts(module: LossModule, mesh: Mesh) -> None:
    """What a process holds is put together to the whole, and the whole is taken apart to what it holds."""
    untouched = adapter_parameters(build(Case(), mesh))
    for name, parameter in adapter_parameters(module).items():
        whole = mesh.whole(name, parameter)
        assert torch.equal(whole, untouched[name]), name
        assert whole.shape == mesh.shape(name, parameter), name
        assert torch.equal(_local(mesh.part(name, whole, parameter)), _local(parameter)), name


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def main(requests: list[dict[str, Any]]) -> None:
    """Each request has the sizes of a mesh in `mesh`; its other values are those of a `Case`."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    single = Mesh.single(CPU)
    alone: dict[Case, tuple[dict[str, Tensor], float]] = {}
    for request in requests:
        job = MeshJob(**request["mesh"])
        case = Case(**{name: value for name, value in request.items() if name != "mesh"})
        same = replace(case, checkpointing=False)
        if same not in alone:
            alone[same] = gradients(build(same, single), single, same)
        expected, expected_norm = alone[same]
        assert all(gradient.abs().max() > 0 for gradient in expected.values())
        mesh = Mesh(job, device=CPU, rank=rank, devices=device_mesh(job, "cpu"), everything=case.whole)
        module = build(case, mesh)
        whole, norm = gradients(module, mesh, case)
        assert whole.keys() == expected.keys()
        worst = max((float((whole[name] - g).abs().max() / g.abs().max()), name) for name, g in expected.items())
        held = sum(_local(parameter).numel() for parameter in module.parameters())
        found = request | {"worst": worst, "norm": abs(norm / expected_norm - 1), "held": held}
        if rank == 0:
            print(json.dumps(found), flush=True)
        assert worst[0] < TOLERANCE, found
        assert abs(norm / expected_norm - 1) < TOLERANCE, found
        if case == Case():
            check_parts(module, mesh)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
