"""The tensors of a checkpoint: an adapter or a whole model against its base, and the optimizer's moments of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from higgsc.contract.outcome import StepError
from higgsc.deploy.fit import BaseShapes, known_shapes, misfits
from higgsc.deploy.inspect.names import name_in_file
from higgsc.deploy.inspect.report import Report
from higgsc.deploy.inspect.tensors import Summary, summaries
from higgsc.deploy.weights import open_weights
from higgsc.train.checkpoints.progress import MOMENTS
from higgsc.train.model.adapter import PROJECTOR, Adapter, read_adapter
from higgsc.train.model.adapter_config import CONFIG_FILE, read_config

Shapes = Mapping[str, tuple[int, ...]]

_DIVERGED = "the training diverged or the file is damaged; pick an earlier checkpoint"
_OTHER_RUN = "the files were put together from two trainings, or the configuration was edited"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the other files of a checkpoint say of its tensors."""

    updates: int | None = None
    """Updates of the optimizer until then; None if not known."""
    job: Mapping[str, Any] = field(default_factory=dict)
    """The train job; empty if not known."""


def adapter_contents(folder: Path, report: Report, base: Path | None, expected: Expected) -> Shapes:
    """Check an adapter: its configuration, its tensors, whether they fit the base and the job.

    Returns:
        Its tensors' shapes by their names in the file; empty if it cannot be read.

    Raises:
        StepError: If there is no base in `base` (66).
    """
    adapter, problems = read_adapter(folder)
    for problem in problems:
        report.add(problem)
    if adapter is None:
        return {}
    if (shapes := _base(report, adapter.base, base)) is not None:
        for problem in misfits(adapter, shapes):
            report.add(problem)
    if expected.job:
        _against_job(folder / CONFIG_FILE, report, expected.job)
    found = {summary.name: summary for summary in _read(adapter.weights_path, report)}
    if adapter.listener is not None:
        found |= {summary.name: summary for summary in _read(adapter.projector_path, report)}
    _note_zeros(adapter, found, report, expected)
    return {name: summary.shape for name, summary in found.items()}


def model_contents(path: Path, report: Report, base: Path | None, expected: Expected) -> Shapes:
    """Check the weights of a whole model against its base; returns and raises as `adapter_contents`."""
    try:
        weights = open_weights(path)
    except StepError as problem:
        report.add(problem)
        return {}
    found = {name: info.shape for name, info in weights.tensors.items()}
    model = expected.job.get("model")
    if (wanted := _base(report, model.get("base") if isinstance(model, Mapping) else None, base)) is not None:
        for difference in _differences(path, found, wanted.shapes, wanted.of):
            report.add(difference)
    for file in weights.files:
        _read(path / file, report)
    return found


def moments_contents(path: Path, report: Report, shapes: Shapes, expected: Expected) -> None:
    """Check that AdamW's two moments of every trained tensor are there, of its shape and finite."""
    files = sorted(path.glob("optimizer*.safetensors"))
    if not files:
        missing = path / "optimizer.safetensors"
        report.add(StepError("is missing: no training can go on from here", path=missing))
        return
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for summary in _read(file, report):
            moment, _, name = summary.name.partition(".")
            found[f"{moment}.{name_in_file(name)[0]}"] = summary.shape
    if not shapes or (not found and expected.updates == 0):
        return
    wanted = {f"{moment}.{name}": shape for name, shape in shapes.items() for moment in MOMENTS}
    for problem in _differences(files[0] if len(files) == 1 else path, found, wanted, "what was trained"):
        report.add(problem)


def _base(report: Report, named: str | None, given: Path | None) -> BaseShapes | None:
    try:
        found = known_shapes(named, given, root=Path.cwd())
    except StepError as problem:
        if given is not None:
            raise
        report.add(problem)
        return None
    report.compared_with = found.of
    return found


def _read(path: Path, report: Report) -> list[Summary]:
    """The tensors of a file; numbers that are not finite are problems."""
    found: list[Summary] = []
    try:
        for summary in summaries(path):
            found.append(summary)
            if not summary.finite:
                report.add(
                    StepError(f"tensor {summary.name!r} holds values that are not finite", path=path, help=_DIVERGED)
                )
    except StepError as problem:
        report.add(problem)
    report.tensors += len(found)
    return found


def _differences(path: Path, found: Shapes, wanted: Shapes, whose: str) -> list[StepError]:
    lacking = [
        StepError(f"has no tensor {name!r}, which {whose} has", path=path) for name in wanted if name not in found
    ]
    other = [
        StepError(
            f"tensor {name!r} has shape {list(shape)}, but {whose} has {list(wanted[name])}"
            if name in wanted
            else f"has a tensor {name!r}, which {whose} has not",
            path=path,
        )
        for name, shape in found.items()
        if wanted.get(name) != shape
    ]
    return lacking + other


def _against_job(path: Path, report: Report, job: Mapping[str, Any]) -> None:
    """The adapter's configuration against the job that lies in the same checkpoint."""
    config, model, lora = read_config(path.parent), job.get("model"), job.get("lora")
    if not isinstance(model, Mapping) or not isinstance(lora, Mapping):
        report.add(StepError("`model` and `lora` are no mappings", path=path.parent.parent / "job.json"))
        return
    pairs: list[tuple[str, object, str, object]] = [
        ("base_model_name_or_path", config.get("base_model_name_or_path"), "model.base", model.get("base")),
        ("revision", config.get("revision"), "model.revision", model.get("revision")),
        ("r", config["r"], "lora.rank", lora.get("rank")),
        ("lora_alpha", config["lora_alpha"], "lora.alpha", lora.get("alpha")),
        ("rank_pattern", config.get("rank_pattern") or {}, "lora.rank_pattern", lora.get("rank_pattern", {})),
        ("alpha_pattern", config.get("alpha_pattern") or {}, "lora.alpha_pattern", lora.get("alpha_pattern", {})),
        ("use_dora", bool(config.get("use_dora")), "lora.dora", lora.get("dora", False)),
        ("use_rslora", bool(config.get("use_rslora")), "lora.scaling", lora.get("scaling") == "rslora"),
        ("target_modules", _sorted(config.get("target_modules")), "lora.targets", _sorted(lora.get("targets"))),
        ("modules_to_save", _sorted(config.get("modules_to_save")), "lora.full", _sorted(lora.get("full"))),
        ("whisper", _named(config.get("whisper")), "model.whisper", _named(model.get("whisper"))),
    ]
    for key, value, where, wanted in pairs:
        if value != wanted:
            report.add(
                StepError(
                    f"`{key}` is {value!r}, but job.json of the same checkpoint has {wanted!r} for `{where}`",
                    path=path,
                    help=_OTHER_RUN,
                )
            )


def _named(whisper: object) -> object:
    """Which Whisper, without what only one of the two says of it."""
    return {key: whisper.get(key) for key in ("encoder", "revision", "width")} if isinstance(whisper, Mapping) else None


def _sorted(names: object) -> object:
    return sorted(map(str, names)) if isinstance(names, Collection) and not isinstance(names, str) else names or []


def _note_zeros(adapter: Adapter, found: Mapping[str, Summary], report: Report, expected: Expected) -> None:
    halves = [found[layer.key_b] for layer in adapter.layers.values() if layer.key_b in found]
    if not halves or not all(half.zero for half in halves) or expected.updates == 0:
        return
    rest = ["magnitudes of DoRA"] if any(layer.key_magnitude for layer in adapter.layers.values()) else []
    rest += ["modules trained whole"] if adapter.full else []
    if adapter.listener is not None and PROJECTOR in found and not found[PROJECTOR].zero:
        rest.append("projector of what Whisper hears")
    report.notes.append(
        f"every B matrix is zero: only the {' and the '.join(rest)} can differ from the base"
        if rest
        else "every B matrix is zero: the adapter changes nothing, and speaks as its base does"
    )
