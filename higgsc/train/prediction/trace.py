"""The memory of a training, traced without a GPU and without weights.

    python -m higgsc.train.prediction.trace TRACE.json

Builds what the train step builds (transformers' class, the adapter if there is one, the loss module, the mesh, AdamW)
from fake tensors, which have shapes but no data, and runs two optimizer steps on a packed row of samples of given
lengths. Every operation's result is counted while it is alive. A fake process group stands for the other processes, so
that sharding is traced at its real size.

A model of a few layers is traced at two depths; what lies between them is the cost of a layer, and the full depth
follows, because every layer is the same: for each phase of a step by itself, and the largest of them is the peak.

What fake tensors cannot show: kernels' private workspaces, the CUDA context and the allocator's fragmentation. The
tracing device is the CPU; the attention keeps there what the CUDA kernels keep: query, key, value, output and
log-sum-exp.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape, shape_of
from higgsc.contract.jobs import LoraJob, TrainJob, WhisperRef
from higgsc.data.listener import Listener
from higgsc.data.store import StoredSample
from higgsc.train.model.build import adapter_parameters, adapter_shape, add_lora
from higgsc.train.model.layers import run_layers
from higgsc.train.model.projector import add_projector
from higgsc.train.model.quantize import quantize_base
from higgsc.train.objective.loss import LossModule, objective
from higgsc.train.optimizer import adamw
from higgsc.train.parallel.mesh import Mesh, device_mesh
from higgsc.train.prediction.tracker import PARTS, Tracker
from higgsc.train.rows.row import PackedBatch, pack
from higgsc.train.rows.sequence import TEXT_LABELS, AudioTokens, Sequence, build_sequence

DEPTHS = (3, 4)
"""Layers of the two models that are traced. The last layer is unlike the others, and while the last but one goes
backward, one more may be fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """One sample: frames of its two clips, and text tokens around them."""

    reference: int
    target: int
    text: int


def trace(job: TrainJob, lengths: Lengths, layers: int) -> dict[str, dict[str, int]]:
    """Peak memory in bytes, by phase and part, of the job's training on a base cut down to `layers` layers.

    Needs the default process group if the job has several processes.
    """
    shape = replace(shape_of(job.model.base), layers=layers)
    config = _config(shape)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    with torch.device("meta"):
        base = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).eval()
        if job.lora is None:
            module = LossModule(base.to(torch.float32).requires_grad_()).train()
        else:
            module = LossModule(add_lora(base.to(dtype), _cut(job.lora, shape), job.seed)).train()
            if job.model.whisper is not None:
                add_projector(base, _listener(job.model.whisper))
            if job.quantize is not None:
                quantize_base(base, job.quantize)
    # As eagerly as the layers are counted: compiled ones keep less. Fakes have no random state to put back.
    tokens = AudioTokens.of(config)
    real = pack([_sequence(lengths, shape, tokens, job.model.whisper)] * (job.batch.micro_samples or 1))
    mesh = _mesh(job)  # reads ranks, so not from fake tensors
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        _fill(module)
        batch = _faked(real, fake)
        mesh.divide(module)
        run_layers(module.causal.model, job.model_copy(update={"compile": False}), redraws=False)
        mesh.distribute(module, dtype if job.lora is None and dtype != torch.float32 else None)
        parameters = adapter_parameters(module)
        optimizer = adamw(list(parameters.values()), job.optimizer)
        tracker = Tracker(lambda: _owners(module, optimizer), resized=job.mesh.shard > 1 or job.lora is None)
        with tracker, _marked(module, tracker), _as_on_a_gpu():
            for _ in range(2):  # AdamW's state exists from the second step on
                _optimizer_step(job, mesh, module, parameters, optimizer, batch, tracker)
    return tracker.peaks


def _optimizer_step(
    job: TrainJob,
    mesh: Mesh,
    module: LossModule,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Any,
    batch: PackedBatch,
    tracker: Tracker,
) -> None:
    """As `higgsc.train.training.Training` does it; of many micro-batches, two show what all do."""
    micro_batches = min(2, job.batch.accumulation)
    bf16 = job.precision == "bf16" and job.lora is not None
    for number in range(1, micro_batches + 1):
        tracker.phase = "gather"
        mesh.accumulate(module, last=number == micro_batches)
        with torch.autocast("cpu", torch.bfloat16 if bf16 else None, enabled=bf16):
            sums = module(batch)
        loss = objective(sums, job.loss, audio_labels=1, text_labels=1)
        tracker.phase = "backward"
        mesh.scaled(loss).backward()  # type: ignore[no-untyped-call]
    tracker.phase = "update"
    mesh.reduce_gradients(parameters)
    mesh.clip_gradients(parameters, job.optimizer.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _owners(module: LossModule, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors that belong to a part whatever made them."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            group = unit._get_fsdp_state()._fsdp_param_group
            for managed in group.fsdp_params if group is not None else ():
                for gathered in (*managed.all_gather_outputs, getattr(managed, "_unsharded_param", None)):
                    if gathered is not None:
                        yield "gathered", gathered
                    for gradient in (getattr(gathered, "grad", None), managed.unsharded_accumulated_grad):
                        if gradient is not None:
                            yield "gradients", gradient
                sharded = managed.sharded_param
                yield ("adapter" if sharded.requires_grad else "base"), sharded
                if sharded.grad is not None:
                    yield "gradients", sharded.grad
    for parameter in module.parameters():
        if isinstance(parameter, DTensor) or not isinstance(module, FSDPModule):
            yield ("adapter" if parameter.requires_grad else "base"), parameter
        if parameter.grad is not None:
            yield "gradients", parameter.grad
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                yield "optimizer", value


@contextmanager
def _marked(module: LossModule, tracker: Tracker) -> Iterator[None]:
    """Tell the tracker what the decoder's forward pass saves: from the first layer to the final norm."""

    def switch(on: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            tracker.in_decoder = on
            tracker.phase = "decoder" if on else "loss"
            if not on:
                tracker.settle()

        return hook

    def behind(_: Any, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].requires_grad:  # where embeddings are trained: their gradients come when the layers are done
            arguments[0].register_hook(lambda _: setattr(tracker, "phase", "embeddings"))  # type: ignore[no-untyped-call]

    decoder = module.causal.model
    handles = (
        decoder.embed_tokens.register_forward_pre_hook(switch(True)),
        decoder.norm.register_forward_hook(switch(False)),
        decoder.layers[0].register_forward_pre_hook(behind),
    )
    try:
        with saved_tensors_hooks(tracker.keep, lambda tensor: tensor):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """What differs from a GPU.

    Dropout keeps a mask of bools, as CUDA's kernel does; the CPU's keeps scaled noise in the input's number format.
    DTensor works out shapes on whole tensors of its own, which are fake even on a GPU: they do not count.
    """

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(input, p, training)[0]

    infer = ShardingPropagator._propagate_tensor_meta_non_cached

    def unseen(self: ShardingPropagator, schema: Any) -> Any:
        with _disable_current_modes():
            return infer(self, schema)

    with (
        patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", unseen),
        patch.object(nn.functional, "dropout", dropout),
    ):
        yield


def _fill(module: nn.Module) -> None:
    """Replace parameters and buffers on the meta device by fake ones on the CPU, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _faked(part: Any, mode: FakeTensorMode) -> Any:
    """A row with fake tensors, which its routes have too."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    fakes = {name: mode.from_tensor(value) for name, value in values.items() if isinstance(value, Tensor)}
    inner = {name: _faked(value, mode) for name, value in values.items() if is_dataclass(value)}
    return replace(part, **fakes, **inner)


def _mesh(job: TrainJob) -> Mesh:
    everything = job.lora is None
    if not _is_group(job):
        return Mesh.single(torch.device("cpu"))
    devices = device_mesh(job.mesh, "cpu")
    return Mesh(job.mesh, device=torch.device("cpu"), rank=0, devices=devices, everything=everything)


def _is_group(job: TrainJob) -> bool:
    return job.mesh.processes > 1 or job.lora is None


def _cut(job: LoraJob, shape: HiggsAudioV2Shape) -> LoraJob:
    """The adapter of a model with another number of layers."""
    adapter = adapter_shape(job)
    assert adapter is not None
    parameters = sum(adapter.parameters(shape).values())
    return job.model_copy(update={"module_count": len(adapter.modules(shape)), "trainable_parameters": parameters})


def _listener(ref: WhisperRef) -> Listener:
    return Listener(**ref.model_dump(), fingerprint="traced")


def _sequence(
    lengths: Lengths, shape: HiggsAudioV2Shape, tokens: AudioTokens, whisper: WhisperRef | None = None
) -> Sequence:
    codes = [np.zeros((frames, shape.codebooks), np.uint16) for frames in (lengths.reference, lengths.target)]
    prefix = np.zeros(lengths.text - TEXT_LABELS, np.int64)
    sample = StoredSample(
        id="traced",
        speaker="",
        prefix=prefix,
        middle=np.zeros(1, np.int64),
        suffix=np.zeros(TEXT_LABELS - 1, np.int64),
        reference=codes[0],
        target=codes[1],
        heard=None if whisper is None else np.zeros((lengths.reference, whisper.width), np.uint16),
    )
    return build_sequence(sample, tokens)


def _config(shape: HiggsAudioV2Shape) -> HiggsAudioV2Config:
    """The class's own token ids where the vocabulary holds them, and small ones where it does not."""
    ids: dict[str, int] = {}
    if shape.vocab_size <= HiggsAudioV2Config().audio_token_id:
        ids = {
            "audio_token_id": 10,
            "audio_delay_token_id": 11,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    config = HiggsAudioV2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        num_codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        **ids,
    )
    config._attn_implementation = "sdpa"
    return config


def peak(job: TrainJob, lengths: Lengths) -> dict[str, int]:
    """Peak memory in bytes, by part, of a process of the job's training; the other processes are fake."""
    world = job.mesh.processes
    if _is_group(job):
        dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        shallow, deep = (trace(job, lengths, layers) for layers in DEPTHS)
    finally:
        if _is_group(job):
            dist.destroy_process_group()
    layers = shape_of(job.model.base).layers
    # Phase by phase: what is the peak of a shallow model, such as gathering the embeddings, may be none of a deep one.
    phases = [extrapolate(shallow[phase], deep[phase], DEPTHS, layers) for phase in shallow]
    return max(phases, key=lambda parts: sum(parts.values()))


def extrapolate(
    shallow: Mapping[str, int], deep: Mapping[str, int], depths: tuple[int, int], layers: int
) -> dict[str, int]:
    """Bytes by part at `layers` layers, on the straight line through the two traced depths."""
    span = depths[1] - depths[0]
    return {part: shallow[part] + (deep[part] - shallow[part]) * (layers - depths[0]) // span for part in PARTS}


def main(path: Path) -> None:
    """Print as JSON what a file asks for: a list of `{"train": job, "reference": …, "target": …, "text": …}`."""
    torch.set_num_threads(1)
    traced = []
    for request in json.loads(path.read_text("utf-8")):
        lengths = Lengths(**{name: request[name] for name in ("reference", "target", "text")})
        full = peak(TrainJob.model_validate(request["train"]), lengths)
        traced.append({"parts": full, "total": sum(full.values())})
    print(json.dumps(traced))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
