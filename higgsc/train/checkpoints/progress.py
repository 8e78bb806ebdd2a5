"""What a training goes on from, beside what was trained: three more files of a checkpoint.

    optimizer.safetensors   AdamW's two moments of every parameter, in full whatever the mesh was; of a whole model in
                            several files
    progress.json           counters, and the stretches of steps that the next figures are means of
    job.json                the job, to see what has changed since

No state of a random generator: the order of the samples and the dropout of a step are functions of the seed and the
step's number (`seeds.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor, nn

from higgsc.contract.jobs import TrainJob
from higgsc.contract.outcome import StepError
from higgsc.train.checkpoints.checkpoint import damaged, read_model, write_tensors
from higgsc.train.model.build import names_in_file
from higgsc.train.parallel.mesh import Mesh
from higgsc.train.report.metrics import SavedMeter
from higgsc.train.report.speed import Window
from higgsc.train.seeds import Purpose, torch_seed

MOMENTS = ("exp_avg", "exp_avg_sq")


class Progress(BaseModel):
    """What `progress.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps done."""
    seconds: float
    """Spent training so far, over all attempts."""
    store_sha256: str
    """Of the store's own record, which holds the hashes of its files."""
    versions: dict[str, str]
    """Of what computes; another one may round differently."""
    skipped: tuple[int, ...] = ()
    """Optimizer steps (1-based) that changed nothing, because a loss or gradient was not finite."""
    rollbacks: tuple[int, ...] = ()
    """Optimizer steps from which the training went back to a checkpoint."""
    left_out: int = 0
    """Batches that rollbacks have left out: step `s` trains on batch `s + left_out`."""
    grad_norm: float
    """Of the last step, should its figures still have to be written."""
    since_log: SavedMeter
    since_checkpoint: SavedMeter
    window: Window
    """Since the last figures were written."""


def seed_dropout(seed: int, rank: int, step: int) -> None:
    """Seed what optimizer step `step` draws: other numbers for each share of the data, the same in every run of it."""
    torch.manual_seed(torch_seed(seed, Purpose.DROPOUT, rank, step))


def writer(job: TrainJob, progress: Progress, moments: Mapping[str, Tensor]) -> Callable[[Path], None]:
    """What writes the three files into a checkpoint's folder."""

    def write(draft: Path) -> None:
        write_tensors(draft / "optimizer.safetensors", moments)
        write_progress(draft, job, progress)

    return write


def write_progress(draft: Path, job: TrainJob, progress: Progress) -> None:
    """Write the two JSON files into a checkpoint's folder."""
    (draft / "progress.json").write_text(progress.model_dump_json(indent=2) + "\n", "utf-8")
    (draft / "job.json").write_text(job.model_dump_json(indent=2) + "\n", "utf-8")


def read_progress(checkpoint: Path) -> Progress:
    """Read `progress.json`.

    Raises:
        StepError: If it is not there or not what it should be.
    """
    return read_model(Progress, checkpoint / "progress.json")


def read_job(checkpoint: Path) -> dict[str, Any]:
    """The job that a checkpoint was trained by, as it was written: an older version's may lack fields.

    Raises:
        StepError: If it is not there or not what it should be.
    """
    path = checkpoint / "job.json"
    try:
        job: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise damaged(path, "does not hold what it should") from error
    return job


@torch.no_grad()
def restore(
    checkpoint: Path,
    *,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    mesh: Mesh,
    updates: int,
) -> None:
    """Put the weights and the moments of a checkpoint into a model and its optimizer, whatever their mesh.

    Args:
        checkpoint: Its hashes have been checked.
        model: Says what the parameters are called in the files, and which files: a PEFT model's are an adapter.
        parameters: The trained ones, by their names in `model`; perhaps sharded.
        optimizer: An AdamW of those parameters; what it had is replaced.
        mesh: The processes.
        updates: Updates that the optimizer is to count as done: steps that were not skipped.

    Raises:
        StepError: If the files hold other tensors than the model has.
    """
    in_file = names_in_file(model, parameters)
    adapted = isinstance(model, PeftModel)
    weights = _Tensors(checkpoint, ("adapter/*.safetensors" if adapted else "model*.safetensors"), mesh)
    saved = _Tensors(checkpoint, "optimizer*.safetensors", mesh)
    with_moments = updates > 0 or bool(saved)
    for name, parameter in parameters.items():
        parameter.copy_(weights.part(in_file[name], name, parameter))
        if with_moments:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(updates), device=mesh.device),
                **{moment: saved.part(f"{moment}.{name}", name, parameter) for moment in MOMENTS},
            }
    weights.expect_empty()
    saved.expect_empty()


class _Tensors:
    """The tensors of some files, each to be taken once; in memory only while it is."""

    def __init__(self, checkpoint: Path, pattern: str, mesh: Mesh) -> None:
        self._mesh, self._path = mesh, checkpoint
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in sorted(checkpoint.glob(pattern)):
            file: Any = safe_open(path, "pt")
            self._files |= dict.fromkeys(file.keys(), (path, file))

    def part(self, name: str, parameter: str, like: Tensor) -> Tensor:
        """What this process holds of the tensor called `name` here, for the parameter of that name in the model."""
        path, file = self._files.pop(name, (self._path, None))
        whole, shape = None if file is None else file.get_tensor(name), self._mesh.shape(parameter, like)
        if whole is None or whole.shape != shape:
            found = "nothing" if whole is None else f"{list(whole.shape)}"
            raise StepError(
                f"holds {found} for {name}, which is {list(shape)} in the model",
                path=path,
                help="the checkpoint belongs to another base; train into another folder",
            )
        return self._mesh.part(parameter, whole, like)

    def __bool__(self) -> bool:
        return bool(self._files)

    def expect_empty(self) -> None:
        if self._files:
            name = min(self._files)
            raise StepError(
                f"holds {len(self._files)} tensors that the model lacks, such as {name}",
                path=self._files[name][0],
                help="the checkpoint belongs to another base; train into another folder",
            )
