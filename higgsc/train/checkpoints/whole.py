"""Checkpoints of a whole model: a folder that transformers' `from_pretrained` loads, written one tensor at a time.

    checkpoints/step-500/
      model-00001-of-00005.safetensors, …, model.safetensors.index.json     (one file: model.safetensors)
      config.json, tokenizer, chat template, …                              the base's own
      optimizer-00001-of-00010.safetensors, …                               AdamW's two moments
      metrics.json, progress.json, job.json, manifest.json                  as in every checkpoint

The weights are float32, as they are trained. `config.json` says in which number format the training computed with
them, so that is what `from_pretrained` loads them in: the released model in bfloat16.

Nothing is copied beforehand as for an adapter: of the released model it would be 69 GB of memory. The processes put one
tensor together at a time, the first one writes and hashes it, and the steps wait until all are on disk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgsc.contract.jobs import StepContext, TrainJob
from higgsc.train.checkpoints.checkpoint import FileStamp, checkpoint_path, draft_checkpoint
from higgsc.train.checkpoints.progress import MOMENTS, Progress, write_progress
from higgsc.train.checkpoints.saving import Saver
from higgsc.train.checkpoints.tensor_file import TensorFile
from higgsc.train.model.folder import base_folder, copy_companions
from higgsc.train.parallel.mesh import Mesh

FILE_BYTES = 5_000_000_000
"""Largest file of tensors, if it holds more than one; transformers' default for a long time."""

_Sizes = dict[str, tuple[int, ...]]


class WholeSaver(Saver):
    """Saves a whole model.

    Args:
        alive: Called between two tensors: saving is no hanging.
        others: As for every saver.
    """

    def __init__(
        self, job: TrainJob, context: StepContext, mesh: Mesh, *, alive: Callable[[], None], **others: Any
    ) -> None:
        super().__init__(job, context, mesh, **others)
        self._alive = alive
        self._companions = base_folder(job.model.base, job.model.revision, root=context.root)
        self._sizes: _Sizes = {name: tuple(mesh.shape(name, p)) for name, p in self._parameters.items()}

    @property
    def size(self) -> int:
        return (1 + len(MOMENTS)) * _bytes(self._sizes)

    def _begin(
        self,
        progress: Progress,
        figures: Mapping[str, float],
        before: Callable[[], object],
        *,
        interrupted: bool,
        began: float,
    ) -> None:
        mesh, folder = self._mesh, self._context.path(self._job.checkpoints)
        opened: list[tuple[Path, dict[str, FileStamp]]] = []  # on the first process
        with ExitStack() as draft:

            def open_draft() -> int:
                before()
                drafted = draft_checkpoint(folder, progress.step, metrics=figures, interrupted=interrupted)
                opened.append(draft.enter_context(drafted))
                dtype = torch.bfloat16 if self._job.precision == "bf16" else torch.float32
                copy_companions(self._companions, opened[0][0], dtype)
                return 0

            def publish() -> int:
                if failure is not None:
                    raise failure
                for kind, sizes in self._kinds():
                    _write_index(opened[0][0], kind, sizes)
                write_progress(opened[0][0], self._job, progress)
                draft.close()
                self._saved(checkpoint_path(folder, progress.step), progress, time.monotonic() - began)
                return 0

            mesh.on_first(open_draft)
            failure = self._write(*(opened[0] if opened else (None, {})))
            mesh.on_first(publish)

    def _write(self, draft: Path | None, stamps: dict[str, FileStamp]) -> OSError | None:
        """Write all tensors, on the first process.

        Returns:
            The error that kept it from writing; it has taken part all the same, for the others wait for it.
        """
        failure = None
        for kind, sizes in self._kinds():
            tensors = self._tensors(kind)
            for file, inside in _files(kind, sizes).items():
                ours = islice(tensors, len(inside))
                if draft is not None and failure is None:
                    layout = {name: (size, torch.float32) for name, size in inside.items()}
                    try:
                        with TensorFile(draft / file, layout) as out:
                            for name, tensor in ours:
                                out.add(name, tensor)
                        stamps[file] = FileStamp(size=out.size, sha256=out.sha256)
                    except OSError as error:
                        failure = error
                for _ in ours:
                    pass
        return failure

    def _kinds(self) -> Iterator[tuple[str, _Sizes]]:
        """Kinds of files, with the sizes of their tensors in order."""
        yield "model", self._sizes
        yield "optimizer", {f"{moment}.{name}": size for name, size in self._sizes.items() for moment in MOMENTS}

    def _tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a kind, put together one after the other; every process has to take all of them."""
        for name, parameter in self._parameters.items():
            held = {name: parameter.detach()}
            if kind == "optimizer":
                held = {f"{moment}.{name}": self._optimizer.state[parameter][moment] for moment in MOMENTS}
            for called, tensor in held.items():
                yield called, self._mesh.whole(name, tensor)
                self._alive()


def _bytes(sizes: _Sizes) -> int:
    return sum(prod(size) for size in sizes.values()) * torch.float32.itemsize


def _write_index(draft: Path, kind: str, sizes: _Sizes) -> None:
    """Which file holds which tensor, as transformers writes it; where there is one file, nothing."""
    files = _files(kind, sizes)
    if len(files) > 1:
        where = {name: file for file, inside in files.items() for name in inside}
        index = {"metadata": {"total_size": _bytes(sizes)}, "weight_map": dict(sorted(where.items()))}
        (draft / f"{kind}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(kind: str, sizes: _Sizes) -> dict[str, _Sizes]:
    """File names as transformers writes them, and the tensors of each, in order."""
    groups: list[_Sizes] = [{}]
    for name, size in sizes.items():
        if groups[-1] and _bytes(groups[-1] | {name: size}) > FILE_BYTES:
            groups.append({})
        groups[-1][name] = size
    if len(groups) == 1:
        return {f"{kind}.safetensors": groups[0]}
    return {f"{kind}-{k:05}-of-{len(groups):05}.safetensors": group for k, group in enumerate(groups, start=1)}
