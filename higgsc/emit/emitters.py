"""All emitters, and the lock over what they emit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256

from higgsc.emit.build import LOCK, Build
from higgsc.emit.documents import job_files, plan_file, report, resolved
from higgsc.emit.kubernetes import kubernetes
from higgsc.emit.slurm import slurm
from higgsc.emit.torchrun import torchrun
from higgsc.emit.torchx import torchx

Emitter = Callable[[Build], dict[str, str]]
"""A pure function from a build to `{path: text}`."""

EMITTERS: tuple[Emitter, ...] = (job_files, plan_file, resolved, report, torchrun, slurm, torchx, kubernetes)


def emit_all(build: Build) -> dict[str, str]:
    """Every file of the build by its path below the build folder, the lock last."""
    files: dict[str, str] = {}
    for emitter in EMITTERS:
        files.update(emitter(build))
    return {**files, LOCK: lock(build, files)}


def lock(build: Build, files: Mapping[str, str]) -> str:
    """sha256 of everything that the build read and wrote."""
    content = {
        "schema": "higgsc.lock/v1",
        "compiler": build.plan.compiler,
        "spec": build.plan.spec,
        "overrides": build.overrides,
        "inputs": {source.name: _digest(source.text) for source in sorted(build.sources, key=lambda s: s.name)},
        "outputs": {path: _digest(text) for path, text in sorted(files.items())},
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8")).hexdigest()
