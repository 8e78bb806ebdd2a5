"""Files for readers: job files for the steps, `plan.json` for programs, `resolved.yaml` and `report.md` for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from higgsc.compiler.batch import batch_of, ranks_of
from higgsc.compiler.composition.provenance import origin_of, values_of
from higgsc.compiler.ir import Ir
from higgsc.compiler.reading.source import NodePath
from higgsc.emit.build import Build
from higgsc.emit.prediction import mesh_line, section

PLAN_SCHEMA = "higgsc.plan/v1"


def job_files(build: Build) -> dict[str, str]:
    """`jobs/<step>.json`: what `higgsc run-step` reads."""
    return {f"jobs/{step.name}.json": step.job.model_dump_json(indent=2) + "\n" for step in build.plan.steps}


def plan_file(build: Build) -> dict[str, str]:
    """`plan.json`: the steps, their commands, resources and order."""
    plan = build.plan
    steps = []
    for step in plan.steps:
        row = {field.name: getattr(step, field.name) for field in fields(step) if field.name != "job"}
        steps.append(row | {"resources": asdict(step.resources)})
    document = {
        "schema": PLAN_SCHEMA,
        "name": plan.name,
        "compiler": plan.compiler,
        "spec": plan.spec,
        "root": build.root_from("."),
        "run": plan.run,
        "hardware": plan.hardware,
        "secrets": plan.secrets,
        "site": plan.site.model_dump(mode="json", exclude={"profile", "price_per_gpu_hour"}),
        "steps": steps,
    }
    return {"plan.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n"}


def resolved(build: Build) -> dict[str, str]:
    """`resolved.yaml`: every value of the spec, each with a comment that says where it came from."""
    ir = build.ir
    values = values_of(ir)
    lines = [(text, "" if path is None else str(origin_of(ir, path))) for text, path in _yaml(values, ())]
    width = min(56, max(len(text) for text, _ in lines))
    body = "\n".join(f"{text.ljust(width)}  # {why}" if why else text for text, why in lines)
    head = f"# {build.plan.spec} with every value filled in, by higgsc {build.plan.compiler}.\n"
    return {"resolved.yaml": f"{head}{body}\n"}


def report(build: Build) -> dict[str, str]:
    """`report.md`: what will happen, in words and numbers."""
    plan, ir = build.plan, build.ir
    spec, batch = ir.spec, batch_of(ir)
    trainable, total = ir.integer("training.trainable_parameters"), ir.shape.parameter_count()
    length = f"{spec.training.epochs:g} epochs" if spec.training.epochs is not None else f"{spec.training.steps} steps"
    lines = [
        f"# {plan.name}",
        "",
        f"`{plan.spec}` compiled by higgsc {plan.compiler}. Change the spec and build again; this file is overwritten.",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{spec.model.base}`{f' at `{spec.model.revision}`' if spec.model.revision else ''} |",
        f"| hardware | {plan.hardware} |",
        f"| mesh | {mesh_line(ir)} |",
        *_what(ir),
        f"| trainable | {trainable:,} of {total:,} parameters ({trainable / total:.2%}) |",
        f"| global batch | {batch.whole} {batch.unit} = {ranks_of(ir)} "
        f"{'ranks' if spec.parallelism.tensor == 1 else 'tensor groups'} × "
        f"{batch.micro} × {ir.integer('training.accumulation')} accumulated |",
        f"| length | {length} |",
        f"| run folder | `{plan.run}` |",
        "",
        *section(ir),
        "## Steps",
        "",
        "| step | what it does | needs | resources | job file |",
        "|---|---|---|---|---|",
    ]
    for step in plan.steps:
        need = ", ".join(step.needs) or "–"
        resources = step.resources
        unit = "GPU" if resources.gpus_per_node else "process"
        count = f"{resources.nodes} node × {resources.processes_per_node} {unit}"
        lines.append(f"| {step.name} | {step.title} | {need} | {count} | `{step.job_path}` |")
    lines += ["", "Run it here with `higgsc run`, or submit `slurm/submit.sh`.", ""]
    return {"report.md": "\n".join(lines)}


def _what(ir: Ir) -> list[str]:
    """Number formats, and what is trained, as rows of the table."""
    lora, precision = ir.spec.lora, ir.spec.precision
    if lora is None:
        return [f"| precision | fp32 weights, {precision} arithmetic |", "| LoRA | none: the whole model is trained |"]
    modules, scheme = ir.integer("lora.module_count"), ir.spec.model.quantize
    rounded = "" if scheme is None else f", its layers' matrices in {scheme}"
    return [
        f"| precision | {precision} base{rounded}, fp32 adapter |",
        f"| LoRA | rank {lora.rank}, alpha {lora.alpha:g}, on {modules} modules |",
        *_listens(ir),
    ]


def _listens(ir: Ir) -> list[str]:
    whisper = ir.spec.model.whisper
    if whisper is None:
        return []
    at = "" if whisper.revision is None else f" at `{whisper.revision}`"
    return [f"| Whisper (experimental) | `{whisper.encoder}`{at}, frozen, with a projector |"]


def _yaml(value: Any, path: NodePath) -> Iterator[tuple[str, NodePath | None]]:
    """Lines of block-style YAML; those that show a value come with its path."""
    for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
        mark = f"{key}:" if isinstance(value, Mapping) else "-"
        place = (*path, key)
        if not isinstance(child, Mapping | tuple) or not child:
            yield f"{mark} {_scalar(child)}", place
            continue
        nested = list(_yaml(child, place))
        if mark == "-":  # the first line of an entry stands on the dash
            yield f"- {nested[0][0]}", nested[0][1]
            nested = nested[1:]
        else:
            yield mark, None
        for text, inner in nested:
            yield f"  {text}", inner


def _scalar(value: Any) -> str:
    """A scalar as YAML 1.2 that reads back as the same value (JSON is a subset of YAML 1.2)."""
    if isinstance(value, Mapping | tuple):
        return "{}" if isinstance(value, Mapping) else "[]"
    return json.dumps(value, ensure_ascii=False)
