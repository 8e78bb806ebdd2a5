"""Whether the local files that a spec names are here, and the packages that its training needs beside the usual ones.

No part of compiling, which is a pure function of the spec: a build is the same whether the data are here or on the
cluster only. The commands ask afterwards, so that a misspelt path is not found by the prepare step after an hour in
the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from higgsc.catalog.remote import is_remote
from higgsc.compiler.compile import Compilation
from higgsc.compiler.diagnostics import Diagnostic, Sink, closest
from higgsc.compiler.ir import Ir


def missing_files(compilation: Compilation) -> tuple[Diagnostic, ...]:
    """A warning for each file or folder that a compiled spec reads and that does not exist on this machine."""
    sink = Sink()
    for made in compilation.compiled:
        for at, path in _local_paths(made.ir):
            place = compilation.root / path
            if place.exists():
                continue
            beside = sorted(other.name for other in place.parent.iterdir()) if place.parent.is_dir() else []
            match = closest(place.name, beside, cutoff=0.7)
            sink.add(
                Diagnostic(
                    "HC411",
                    f"`{path}` is not on this machine",
                    made.ir.label(at),
                    notes=(f"looked for {place}",),
                    help=f"did you mean `{path[: len(path) - len(place.name)]}{match}`?"
                    if match
                    else "paths start at the project root; if it lies on the cluster only, all is well",
                )
            )
    return sink.diagnostics


def missing_packages(compilation: Compilation) -> tuple[Diagnostic, ...]:
    """A warning for each tracker of the training whose package this Python lacks, if it is the one that may train.

    It may not where the site has an environment of its own for the steps, nor where there is no torch.
    """
    sink = Sink()
    for made in compilation.compiled:
        site, tracking = made.ir.spec.site, made.ir.spec.tracking
        elsewhere = site.venv is not None or site.conda is not None or site.container is not None
        if elsewhere or find_spec("torch") is None:
            continue
        for index, name in enumerate(tracking.to):
            if find_spec(name) is None:
                sink.add(
                    Diagnostic(
                        "HC414",
                        f"the package `{name}` is not installed here",
                        made.ir.label(f"tracking.to.{index}"),
                        help=f"`pip install {name}` where the training runs, or leave `{name}` out",
                    )
                )
    return sink.diagnostics


def _local_paths(ir: Ir) -> Iterator[tuple[str, str]]:
    """Where the spec names something on disk, and what."""
    for index, source in enumerate(ir.spec.data.train):
        if not is_remote(source.path):
            yield f"data.train.{index}.path", source.path
    if ir.spec.lora is not None and ir.spec.lora.start is not None:
        yield "lora.start", ir.spec.lora.start
    for at, name in (("model.base", ir.spec.model.base), ("model.audio_tokenizer", ir.spec.model.audio_tokenizer)):
        if name.startswith((".", "/")):
            yield at, name
