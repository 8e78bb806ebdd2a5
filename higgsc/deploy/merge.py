"""Fold an adapter into its base: LoRA, DoRA, weights trained whole; tensor by tensor, checked before it is published.

Only one tensor is in memory at a time, the sum is formed in float32 whatever the files hold, and the result keeps
the base's files, names and shards. Every tensor of the base is carried over, the text head included; a merge
through `from_pretrained` and `save_pretrained` loses that head, since transformers loads it only when asked.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

import higgsc
from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import MergeJob, MeshJob, StepContext
from higgsc.contract.outcome import ExitCode, StepError, StepResult
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file
from higgsc.deploy.verify import LogitsCheck, compare_logits
from higgsc.deploy.weights import TensorInfo, Weights, copy_weights, open_weights
from higgsc.train.checkpoints.checkpoint import select_checkpoint
from higgsc.train.model.adapter import CONFIG_FILE, Adapter, open_adapter, read_tensors
from higgsc.train.model.folder import base_folder, copy_companions
from higgsc.train.parallel.mesh import open_mesh

REPORT_FILE = "merge.json"
REPORT_SCHEMA = "higgsc.merge/v1"

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called after each tensor with how many are done, how many there are, and the tensor's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How well one merged tensor is kept by the dtype it is stored in."""

    change: float
    """Frobenius norm of what the adapter changes, relative to that of the base's tensor."""
    rounding: float
    """Frobenius norm of what storing rounds away, relative to that of what the adapter changes.

    In bfloat16 it depends on `change` alone: about 2 % at 0.1, 17 % at 0.01, 50 % at 0.003.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge did; also in the merged folder, as `merge.json`."""

    base: str | None
    """What the adapter says it was trained on."""
    revision: str | None
    adapter_sha256: str
    dtype: Literal["bf16", "fp32"]
    logits: LogitsCheck
    tensors: Mapping[str, Fidelity]
    """The merged tensors, by name."""

    @property
    def largest_rounding(self) -> float:
        """The largest of the tensors' `rounding`."""
        return max(fidelity.rounding for fidelity in self.tensors.values())


def merge_adapter(
    base: str | Path,
    adapter_dir: Path,
    out_dir: Path,
    *,
    dtype: Literal["bf16", "fp32"],
    revision: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> MergeReport:
    """Write the merge of an adapter and its base as a model folder that plain transformers loads.

    The folder appears only when it is complete and its logits are those of base and adapter as PEFT computes
    them. An earlier merge in `out_dir` is replaced.

    Args:
        base: Folder of the base (safetensors, in one file or sharded), hub id or `builtin:tiny`.
        adapter_dir: Folder of the adapter in PEFT's format.
        out_dir: The folder to write.
        dtype: Dtype of the merged model's floating-point tensors.
        revision: Commit, tag or branch of the base on the hub.
        device: Where the logits are compared, one model at a time in float32: 23 GB for the released base.
        progress: Told about every tensor.

    Raises:
        StepError: If a file is missing (66) or damaged, the adapter is of a kind that has no exact merge, or does not
            fit the base, naming file and tensor (65); if the logits differ (70); if `out_dir` holds something
            else (2), or cannot be written (74).
    """
    adapter = open_adapter(adapter_dir)
    base_dir = base_folder(str(base), revision, root=Path.cwd())
    weights = open_weights(base_dir)
    _check_fit(adapter, weights)
    fidelities: dict[str, Fidelity] = {}
    done = 0

    def merged(info: TensorInfo, weight: torch.Tensor) -> torch.Tensor:
        nonlocal done
        result = weight
        exact = _exact(adapter, info.name, weight)
        if exact is not None:
            result, fidelities[info.name] = _store(weight, exact, DTYPES[dtype])
        done += 1
        if progress is not None:
            progress(done, len(weights.tensors), info.name)
        return result

    with publish_folder(out_dir, marker=REPORT_FILE) as folder:
        copy_companions(base_dir, folder, DTYPES[dtype])
        copy_weights(weights, folder, dtype=DTYPES[dtype], change=merged)
        gc.collect()
        check = compare_logits(base_dir, adapter_dir, folder, dtype=DTYPES[dtype], device=torch.device(device))
        report = MergeReport(
            base=adapter.base,
            revision=adapter.revision,
            adapter_sha256=sha256_file(adapter.weights_path),
            dtype=dtype,
            logits=check,
            tensors=fidelities,
        )
        if not check.passed:
            raise StepError(
                f"the merged model is not base and adapter: its logits of up to {check.largest_logit:.3g} differ by "
                f"{check.max_difference:.3g}, and by {check.max_difference_to_peft:.3g} from those of PEFT's merge "
                f"rounded to {dtype}; nothing was published",
                code=ExitCode.INTERNAL,
                path=adapter.weights_path,
                help="merge in fp32 to rule out rounding; if it differs there too, please report it",
            )
        text = json.dumps({"schema": REPORT_SCHEMA, "higgsc": higgsc.__version__, **asdict(report)}, indent=2)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return report


def _exact(adapter: Adapter, name: str, weight: torch.Tensor) -> torch.Tensor | None:
    """A merged tensor in float32, in the order of PEFT's own operations; None for one that the adapter leaves alone."""
    if name in adapter.full:
        return read_tensors(adapter, adapter.full[name])[0]
    layer = adapter.layers.get(name)
    if layer is None:
        return None
    a, b = read_tensors(adapter, layer.key_a, layer.key_b)
    merged = (b @ a).mul_(layer.scale).add_(weight.float())
    if layer.key_magnitude is None:
        return merged
    (magnitude,) = read_tensors(adapter, layer.key_magnitude)
    return merged.mul_((magnitude / torch.linalg.norm(merged, dim=1)).view(-1, 1))


def _store(weight: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, Fidelity]:
    original, stored = weight.float(), exact.to(dtype)
    change = float((exact - original).norm())
    rounding = float((stored.float() - exact).norm()) / change if change else 0.0
    return stored, Fidelity(change=change / max(float(original.norm()), 1e-30), rounding=rounding)


def _check_fit(adapter: Adapter, weights: Weights) -> None:
    for name, layer in adapter.layers.items():
        info = weights.tensors.get(name)
        if info is None:
            raise StepError(
                f"tensor {layer.key_a!r} adapts `{layer.module}`, which the base at {weights.folder} does not have",
                path=adapter.weights_path,
                help="the adapter was trained on another model, or on the original implementation's names",
            )
        if info.shape != layer.shape:
            raise StepError(
                f"tensors {layer.key_a!r} and {layer.key_b!r} make a change of shape {list(layer.shape)}, "
                f"but `{name}` in {weights.folder / info.file} has {list(info.shape)}",
                path=adapter.weights_path,
                help="the adapter was trained on a base of another size",
            )
    for name, key in adapter.full.items():
        if name not in weights.tensors:
            raise StepError(
                f"tensor {key!r} replaces `{name}`, which the base at {weights.folder} does not have",
                path=adapter.weights_path,
                help="the adapter was trained on another model",
            )
        info, (tensor,) = weights.tensors[name], read_tensors(adapter, key)
        if tuple(tensor.shape) != info.shape:
            raise StepError(
                f"tensor {key!r} has shape {list(tensor.shape)}, but `{name}` in {weights.folder / info.file} has "
                f"{list(info.shape)}",
                path=adapter.weights_path,
                help="the adapter was trained on a base of another size",
            )


def run(job: MergeJob, context: StepContext) -> StepResult:
    """Merge the selected checkpoint's adapter.

    Raises:
        StepError: See `merge_adapter`; also if there is no checkpoint, or it was trained on another base.
    """
    checkpoint = select_checkpoint(context.path(job.checkpoints), job.select, by=job.best)
    adapter = open_adapter(checkpoint.adapter)
    if (adapter.base, adapter.revision) != (job.model.base, job.model.revision):
        raise StepError(
            f"the adapter was trained on `{adapter.base}` at revision {adapter.revision}, "
            f"but the job merges it into `{job.model.base}` at revision {job.model.revision}",
            path=checkpoint.adapter / CONFIG_FILE,
            help="run the train step again, or build the spec that the adapter was trained with",
        )
    base = base_folder(job.model.base, job.model.revision, root=context.root)
    heartbeat = HeartbeatWriter(context.path(job.run), "merge", unit="tensors", total=len(open_weights(base).tensors))
    out = context.path(job.merged)
    alone = MeshJob(replicate=1, shard=1)
    with open_mesh(alone, job.device, rank=context.rank, world_size=context.world_size) as mesh:
        report = merge_adapter(
            base,
            checkpoint.adapter,
            out,
            dtype=job.dtype,
            device=mesh.device,
            progress=lambda done, total, name: heartbeat.beat(done, name, force=done == total),
        )
    check = report.logits
    logger.info(
        "merged %s: largest logit difference %.3g, of an adapter effect of %.3g; rounding of at most %.2g of a change",
        checkpoint.path.name, check.max_difference, check.adapter_effect, report.largest_rounding,
    )  # fmt: skip
    return StepResult(
        summary=f"{checkpoint.path.name} merged in {job.dtype}, {len(report.tensors)} tensors changed, "
        f"logits within {check.max_difference:.2g}",
        inputs=tuple(path for path in sorted(checkpoint.path.rglob("*")) if path.is_file()),
        outputs=(out,),
        figures={
            "merge/checkpoint_step": checkpoint.step,
            "merge/tensors": len(report.tensors),
            "merge/max_logit_difference": check.max_difference,
            "merge/max_logit_difference_to_peft": check.max_difference_to_peft,
            "merge/largest_logit": check.largest_logit,
            "merge/adapter_effect": check.adapter_effect,
            "merge/largest_rounding": report.largest_rounding,
        },
    )
