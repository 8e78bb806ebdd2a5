"""Fold an adapter into its base: LoRA, DoRA, weights trained whole; some rows at a time, checked, then published.

The sum is formed in float32 whatever the files hold, and the result keeps the base's files and shards. Every tensor
of the base is carried over, the text head included; a merge through `from_pretrained` and `save_pretrained` loses
that head, since transformers loads it only when asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch

import higgsc
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.contract.publish import publish_folder
from higgsc.contract.receipts import sha256_file
from higgsc.deploy.fit import check_fit, check_mergeable
from higgsc.deploy.merge.base import check_base
from higgsc.deploy.merge.card import write_card
from higgsc.deploy.merge.names import Layout, check_layout, names_in, renamed
from higgsc.deploy.merge.original_config import write_original_config
from higgsc.deploy.merge.record import Record
from higgsc.deploy.merge.rows import SAMPLED, Fidelity, Tally, exact_rows, stored_rows
from higgsc.deploy.merge.verify import LogitsCheck, compare_logits
from higgsc.deploy.peft_layers import adapt
from higgsc.deploy.quantize.folder import Quantization, put_in_place, quantize_draft
from higgsc.deploy.quantize.scheme import Scheme
from higgsc.deploy.rewrite import Rewriter, Rows
from higgsc.deploy.streamed import empty_model
from higgsc.deploy.weights import TensorInfo, Weights, open_weights, write_index
from higgsc.train.model.adapter import Adapter, open_adapter
from higgsc.train.model.folder import base_folder, copy_companions
from higgsc.train.model.torchao import check_torchao

REPORT_FILE = "merge.json"
REPORT_SCHEMA = "higgsc.merge/v1"

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Progress = Callable[[int, int, str], None]
"""Called as each tensor is reached, with its number from 1, how many there are, and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What a merge did; also in the merged folder, as `merge.json`."""

    base: str | None
    """What the adapter says it was trained on."""
    revision: str | None
    adapter_sha256: str
    dtype: Literal["bf16", "fp32"]
    layout: Layout
    logits: LogitsCheck
    tensors: Mapping[str, Fidelity]
    """The merged tensors, by their names in the base."""
    quantization: Quantization | None = None
    """What was quantised after that, and what it changed; `tensors` and `logits` are of the model before."""

    ROUNDING_WORTH_A_WORD: ClassVar[float] = 0.25
    """Largest `rounding` that goes without a warning; bfloat16 rounds as much away where a tensor changed by 0.6 %."""

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
    layout: Layout = "transformers",
    quantize: Scheme | None = None,
    store: Path | None = None,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    provenance: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Write the merge of an adapter and its base as a model folder that plain transformers loads.

    The folder appears only when it is complete and its logits are those of base and adapter as PEFT computes
    them. An earlier merge in `out_dir` is replaced. A merge that was killed is gone on with, file by file, if nothing
    it was made from has changed since; the result is the same to the byte.

    Args:
        base: Folder of the base (safetensors, in one file or sharded), hub id or `builtin:tiny`.
        adapter_dir: Folder of the adapter in PEFT's format.
        out_dir: The folder to write.
        dtype: Dtype of the merged model's floating-point tensors.
        layout: Whose names and configuration the result has: transformers', or the original release's.
        quantize: How the linear weights are quantised once the merge has been checked; None leaves them in `dtype`,
            which stays that of everything else.
        store: Speech that is measured on what quantising changes; None for a random sequence.
        revision: Commit, tag or branch of the base on the hub.
        device: Where the logits are compared.
        provenance: More lines for the model card, by what they say.
        progress: Told about every tensor.

    Raises:
        StepError: If a file is missing, or torchao where it is asked for (66); if a file is damaged, the adapter is of
            a kind that has no exact merge, or does not fit the base, naming file and tensor (65); if the logits differ
            (70); if `out_dir` holds something else (2), or cannot be written (74).
    """
    if quantize is not None:
        if layout != "transformers":
            raise StepError(
                "a quantised model can only have transformers' names: the original release's code cannot load it",
                code=ExitCode.USAGE,
                help="leave `--layout` or `--quantize` out",
            )
        check_torchao()
    adapter = open_adapter(adapter_dir)
    check_mergeable(adapter)
    base_dir = base_folder(str(base), revision, root=Path.cwd())
    weights = open_weights(base_dir)
    config = check_base(weights)
    check_fit(adapter, weights)
    adapt(empty_model(config), adapter_dir)  # PEFT, which checks the merge, has to understand the adapter as we do
    check_layout(weights, layout)
    adapter_sha256 = sha256_file(adapter.weights_path)
    record = Record.of(weights, adapter_sha256, dtype=dtype, layout=layout)
    steps = Steps(progress, len(weights.tensors) * (1 if quantize is None else 2))
    with publish_folder(out_dir, marker=REPORT_FILE, goes_on_from=record.is_of) as folder:
        tensors = write_weights(adapter, weights, folder, record, dtype=DTYPES[dtype], layout=layout, steps=steps)
        merged = renamed(open_weights(folder), layout)
        check = compare_logits(config, weights, adapter_dir, merged, dtype=DTYPES[dtype], device=torch.device(device))
        report = MergeReport(
            base=adapter.base,
            revision=adapter.revision,
            adapter_sha256=adapter_sha256,
            dtype=dtype,
            layout=layout,
            logits=check,
            tensors=dict(sorted(tensors.items())),
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
        if quantize is not None:
            quantized = quantize_draft(
                merged, config, quantize, store=store, device=torch.device(device), reached=steps.reached
            )
            report = replace(report, quantization=quantized)
        copy_companions(base_dir, folder, DTYPES[dtype])
        if layout == "original":
            write_original_config(folder)
        write_card(
            folder, _facts(report, provenance or {}), base=adapter.base, layout=layout, quantized=quantize is not None
        )
        text = json.dumps({"schema": REPORT_SCHEMA, "higgsc": higgsc.__version__, **asdict(report)}, indent=2)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        record.remove(folder)  # from here on, the folder is complete or thrown away
        if quantize is not None:
            put_in_place(folder, quantize)
    return report


class Steps:
    """Counts the tensors as they are reached."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def skip(self, tensors: int) -> None:
        self._done += tensors

    def reached(self, name: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, name)


def _facts(report: MergeReport, provenance: Mapping[str, str]) -> dict[str, str]:
    """What the model card says of where the model comes from."""
    at = "" if report.revision is None else f", revision {report.revision}"
    check = report.logits
    return {
        **({} if report.base is None else {"base": f"{report.base}{at}"}),
        **provenance,
        "adapter (SHA-256)": report.adapter_sha256,
        "stored in": f"{report.dtype}; up to {report.largest_rounding:.1%} of a tensor's change is rounded away",
        "checked": f"logits of up to {check.largest_logit:.3g} within {check.max_difference:.2g} of base and adapter",
        **({} if report.quantization is None else {"quantised": report.quantization.words}),
        **({} if report.quantization is None else {"quantising changed": report.quantization.difference.words}),
        "merged by": f"higgsc {higgsc.__version__}",
    }


def write_weights(
    adapter: Adapter,
    weights: Weights,
    folder: Path,
    record: Record,
    *,
    dtype: torch.dtype,
    layout: Layout,
    steps: Steps,
) -> dict[str, Fidelity]:
    """Write the files that are not there yet; each is recorded when it is on disk."""
    found = record.files(folder)
    with Rewriter(weights, folder, dtype=dtype, rename=names_in(layout)) as rewriter:
        for file in weights.files:
            infos = [info for info in weights.tensors.values() if info.file == file]
            if file in found:
                steps.skip(len(infos))
                continue
            tallies: dict[str, Tally] = {}

            def change(info: TensorInfo, tallies: dict[str, Tally] = tallies) -> Rows | None:
                steps.reached(info.name)
                exact = exact_rows(adapter, info)
                if exact is None:
                    return None
                tallies[info.name] = Tally(SAMPLED if info.name in adapter.layers else 1)
                return stored_rows(exact, dtype, tallies[info.name])

            def flushed(file: str = file, tallies: dict[str, Tally] = tallies) -> None:
                found[file] = {name: tally.fidelity for name, tally in tallies.items()}
                record.write(folder, found)

            if layout == "transformers" and not any(
                adapter.changes(info.name) or info.stored_as(dtype) != info.dtype for info in infos
            ):
                for info in infos:
                    steps.reached(info.name)
                rewriter.copy(file, flushed)
            else:
                rewriter.write(file, change, flushed)
    write_index(weights, folder, dtype=dtype, rename=names_in(layout))
    return {name: fidelity for of_file in found.values() for name, fidelity in of_file.items()}
