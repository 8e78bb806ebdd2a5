"""The merge step of a plan."""

from __future__ import annotations

import logging

from higgsc.contract.heartbeat import HeartbeatWriter
from higgsc.contract.jobs import MergeJob, MeshJob, StepContext
from higgsc.contract.outcome import StepError, StepResult
from higgsc.deploy.fit import check_mergeable
from higgsc.deploy.merge.fold import merge_adapter
from higgsc.deploy.merge.source import of_checkpoint
from higgsc.deploy.quantize.folder import Quantization
from higgsc.deploy.weights import open_weights
from higgsc.train.checkpoints.checkpoint import select_checkpoint
from higgsc.train.model.adapter import open_adapter
from higgsc.train.model.adapter_config import CONFIG_FILE
from higgsc.train.model.folder import base_folder
from higgsc.train.parallel.mesh import open_mesh

logger = logging.getLogger(__name__)


def run(job: MergeJob, context: StepContext) -> StepResult:
    """Merge the selected checkpoint's adapter.

    Raises:
        StepError: See `merge_adapter`; also if there is no checkpoint, or it was trained on another base.
    """
    checkpoint = select_checkpoint(context.path(job.checkpoints), job.select, by=job.best)
    adapter = open_adapter(checkpoint.adapter)
    check_mergeable(adapter)
    if (adapter.base, adapter.revision) != (job.model.base, job.model.revision):
        raise StepError(
            f"the adapter was trained on `{adapter.base}` at revision {adapter.revision}, "
            f"but the job merges it into `{job.model.base}` at revision {job.model.revision}",
            path=checkpoint.adapter / CONFIG_FILE,
            help="run the train step again, or build the spec that the adapter was trained with",
        )
    base = base_folder(job.model.base, job.model.revision, root=context.root)
    total = len(open_weights(base).tensors) * (1 if job.quantize is None else 2)
    heartbeat = HeartbeatWriter(context.path(job.run), "merge", unit="tensors", total=total)
    out, source = context.path(job.merged), of_checkpoint(checkpoint)
    alone = MeshJob(replicate=1, shard=1)
    with open_mesh(alone, job.device, rank=context.rank, world_size=context.world_size) as mesh:
        report = merge_adapter(
            base,
            checkpoint.adapter,
            out,
            dtype=job.dtype,
            quantize=job.quantize,
            store=source.store,
            device=mesh.device,
            provenance=source.facts,
            progress=lambda done, total, name: heartbeat.beat(done, name, force=done == total),
        )
    check = report.logits
    if report.largest_rounding > report.ROUNDING_WORTH_A_WORD:
        logger.warning(
            "storing in %s rounds up to %.0f %% of a tensor's change away; `merge: {dtype: fp32}` keeps it",
            job.dtype, 100 * report.largest_rounding,
        )  # fmt: skip
    logger.info(
        "merged %s: largest logit difference %.3g, of an adapter effect of %.3g; rounding of at most %.2g of a change",
        checkpoint.path.name, check.max_difference, check.adapter_effect, report.largest_rounding,
    )  # fmt: skip
    quantized = report.quantization
    if quantized is not None:
        logger.info("quantised %s", quantized.words)
        logger.info("quantising changed: %s", quantized.difference.words)
    return StepResult(
        summary=f"{checkpoint.path.name} merged in {job.dtype}, {len(report.tensors)} tensors changed, "
        f"logits within {check.max_difference:.2g}" + ("" if quantized is None else f", then in {quantized.scheme}"),
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
            **({} if quantized is None else _figures(quantized)),
        },
    )


def _figures(quantized: Quantization) -> dict[str, float]:
    changed = quantized.difference
    return {
        "merge/quantized_share_of_size": quantized.sizes.quantized_after / quantized.sizes.quantized_before,
        "merge/quantized_largest_error": quantized.largest_error,
        "merge/quantized_audio_loss_change": changed.audio_loss - changed.audio_loss_before,
        "merge/quantized_codes_changed": changed.codes_changed,
    }
